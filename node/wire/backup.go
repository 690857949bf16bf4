package wire

import "kvmesh/raftstore/kv"

// Frame types of kvmesh-backup/1, one exchange a connection.
const (
	BackupGet   byte = 1 // BackupArgs
	BackupHead  byte = 2 // BackupStart; BackupData frames follow, then BackupEnd or BackupError
	BackupData  byte = 3 // raw bytes, at most 256 KiB
	BackupEnd   byte = 4 // empty: that was all
	BackupError byte = 5 // BackupFailure, in place of BackupHead too
)

// BackupArgs asks a voter for a backup.
type BackupArgs struct {
	Stale bool // of whatever the voter has; else of everything acknowledged before
}

// BackupStart says of what moment the backup is.
type BackupStart struct {
	Epoch    kv.Epoch
	Revision kv.Revision
	Estimate int64 // about how many bytes will follow
}

// BackupFailure says why there is no backup, or no more of it.
type BackupFailure struct {
	Code, Message string
	RetryAfterMs  int64
}
