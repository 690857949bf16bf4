// Package config is the settings of one node: what `kvmesh serve` can be told, by flag, environment, YAML file or
// default, in that order. One table (Settings) describes every setting once; flags, environment names, the strict file
// reader, `kvmesh config show` and the reference text are all made from it. The package knows nothing of how a node is
// built: the composition root takes a Config and hands each part what it needs.
package config

import (
	"log/slog"
)

// Role is what a node is in the mesh.
type Role string

// The roles.
const (
	// RoleVoter is a Raft member of the central store.
	RoleVoter Role = "voter"
	// RoleLearner holds a full copy of the central store but does not vote.
	RoleLearner Role = "learner"
	// RoleEdge is a caching peer.
	RoleEdge Role = "edge"
)

// Profile sets the timeouts of Raft and gossip for the distance between the nodes.
type Profile string

// The profiles.
const (
	ProfileLAN Profile = "lan"
	ProfileWAN Profile = "wan"
)

// LogFormat is the form of the log on standard error.
type LogFormat string

// The log formats.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// Config is everything one node is told. The zero Config is not valid; start from Default or Load. Config is a plain
// value, except that Mesh.Join is a slice: copy it before changing it.
type Config struct {
	Node   Node
	Listen Listen
	Mesh   Mesh
	API    API
	Cache  Cache
	Log    Log
}

// Node says who this node is.
type Node struct {
	// Name is for people. A node's identity is a UUID that it keeps in its data directory.
	Name    string
	Role    Role
	Region  string
	DataDir string
}

// Listen says where the node listens, as host:port, and how the others reach it.
type Listen struct {
	HTTP, Peer, Gossip, Admin string
	// Advertise is the host, without a port, that the others use. Empty: the host of each listener.
	Advertise string
	// HTTPCert and HTTPKey are the PEM files of a certificate with its chain, and of its private key: with them the public
	// listener speaks TLS. Both or neither.
	HTTPCert, HTTPKey string
}

// Mesh says how the node finds the others and proves that it belongs to them.
type Mesh struct {
	// Join is the seeds: gossip addresses, host:port.
	Join []string
	// BootstrapExpect is the number of voters that start a new mesh together; 0 never starts one.
	BootstrapExpect int
	// KeyFile holds the mesh key, as package certs reads it.
	KeyFile string
	Profile Profile
}

// API says who may use the public HTTP listener.
type API struct {
	// TokenFile holds the bearer token that every request must carry, as package auth reads it. Empty: none is asked for.
	TokenFile string
	// OpenHTTP allows an HTTP listener without a token on an address that is not loopback.
	OpenHTTP bool
	// StrictLimits takes one write a second to each key on the two Cloudflare surfaces.
	StrictLimits bool
}

// Cache bounds what the node keeps in memory.
type Cache struct {
	Size Size
}

// Log says what is logged, and how.
type Log struct {
	Level  slog.Level
	Format LogFormat
}

// Default is the configuration of a node that is told nothing, on this machine: a lone voter on loopback addresses.
// Values that depend on others (bootstrap-expect) are those of that voter; Load works them out for every role.
func Default() Config { return DefaultOn(ThisMachine()) }

// DefaultOn is Default on a machine of which m is known.
func DefaultOn(m Machine) Config {
	c := literals()
	for _, s := range Settings() {
		if s.derive != nil {
			s.derive(&c, m)
		}
	}
	return c
}

// literals is the configuration before the derived values.
func literals() Config {
	var c Config
	for _, s := range Settings() {
		if s.Default == "" {
			continue
		}
		if err := s.set(&c, []string{s.Default}); err != nil {
			panic("config: default of " + s.Name + ": " + err.Error()) // a mistake in the table, found by every test
		}
	}
	return c
}
