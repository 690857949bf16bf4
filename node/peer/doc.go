// Package peer is the traffic between nodes over TCP: one TLS 1.3 port on which both sides prove that they belong to the
// mesh, and ALPN says what is spoken. It brings Raft its streams, carries requests and answers (Mux and Client), and hands
// feed and blob connections to whoever serves them. It knows no method and no policy beyond "which role may speak what".
//
//	Client ── pool ── Dialer ══ TCP, TLS 1.3 ══ Server ─┬─ kvmesh-raft/1 ── StreamLayer (voters and learners only)
//	                                                    ├─ kvmesh-rpc/1  ── Mux
//	                                                    ├─ kvmesh-feed/1
//	                                                    ├─ kvmesh-blob/1
//	                                                    ├─ kvmesh-backup/1
//	                                                    └─ kvmesh-rescue/1 (voters and learners only)
//
// The first byte that the called side sends says whether the caller may go on (helloOK), and comes with its first answer,
// so it costs no round trip. A refusal is an error with a reason instead of a lost connection.
package peer

// The protocols of the peer port.
const (
	ALPNRaft   = "kvmesh-raft/1"
	ALPNRPC    = "kvmesh-rpc/1"
	ALPNFeed   = "kvmesh-feed/1"
	ALPNBlob   = "kvmesh-blob/1"
	ALPNBackup = "kvmesh-backup/1"
	ALPNRescue = "kvmesh-rescue/1"
)
