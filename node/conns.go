package node

const (
	// maxHTTPConns caps the connections of each HTTP listener.
	maxHTTPConns = 16384
	// minHTTPConns is what a listener gets of however few descriptors.
	minHTTPConns = 16
)

// connLimits are the caps of the public and of the admin listener in a process that may have this many descriptors open (0 =
// that is not known). A quarter stays for the store's files, the other nodes and the admin listener, which has a sixteenth:
// a node that clients have used up must still be able to talk to its mesh, and to its operator.
func connLimits(files uint64) (public, admin int) {
	public, admin = maxHTTPConns, maxHTTPConns
	if files > 0 {
		public = int(max(min(files-files/4, maxHTTPConns), minHTTPConns))
		admin = int(max(min(files/16, maxHTTPConns), minHTTPConns))
	}
	return public, admin
}

// publicConns and adminConns are the limits of this process.
func publicConns() int { public, _ := connLimits(maxFiles()); return public }
func adminConns() int  { _, admin := connLimits(maxFiles()); return admin }
