package cache

import "slices"

// sizeClasses are the sizes that Go's allocator has for objects of up to maxSmallSize bytes without pointers, as
// runtime/sizeclasses.go lists them; a test compares them with the runtime's own. Larger ones are rounded up to pages.
var sizeClasses = [...]uint16{
	8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 320, 352, 384, 416, 448, 480, 512,
	576, 640, 704, 768, 896, 1024, 1152, 1280, 1408, 1536, 1792, 2048, 2304, 2688, 3072, 3200, 3456, 4096, 4864, 5376, 6144,
	6528, 6784, 6912, 8192, 9472, 9728, 10240, 10880, 12288, 13568, 14336, 16384, 18432, 19072, 20480, 21760, 24576, 27264,
	28672, 32768,
}

const (
	maxSmallSize = 32768
	pageSize     = 8192
)

// sizeClass is the memory that an allocation of n bytes takes.
func sizeClass(n int) int {
	switch {
	case n == 0:
		return 0
	case n > maxSmallSize:
		return (n + pageSize - 1) / pageSize * pageSize
	}
	i, _ := slices.BinarySearch(sizeClasses[:], uint16(n))
	return int(sizeClasses[i])
}
