// Package certs turns the mesh key into everything that proves membership: the gossip key, the key-encryption key, and a
// certificate authority from which every node issues its own certificate, so that no secret ever travels. It also holds
// the TLS settings of the peer port and the identity that a certificate states. It knows nothing of connections beyond
// their handshake; node/peer does the rest.
package certs
