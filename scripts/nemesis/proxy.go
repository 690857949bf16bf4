//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// proxies is the network where namespaces cannot be had: the nodes listen on loopback addresses of their own and
// advertise others, at which this program listens and passes on what it gets. A cut holds the bytes back, as a cable that
// was pulled does: connections stay open and nothing comes through. Two things differ from a real network: a connection
// over a cut is accepted before it hangs, and clients are never cut off.
type proxies struct {
	mu     sync.Mutex // guards all below
	pids   map[int]int
	closed bool
	cuts   map[[2]int]bool
	mended chan struct{} // closed and replaced when cuts are undone
	closer []io.Closer
	joined map[int]bool
	wg     sync.WaitGroup
}

const (
	// The ports that pass through the proxies; the HTTP ports do not.
	peerPort, gossipPort = 8581, 8582
	// proxyDial bounds the connection from a proxy to its node, which is on the same machine.
	proxyDial = 2 * time.Second
	// identifyFor is how long a new connection's owner is looked for before it counts as nobody's.
	identifyFor = time.Second
)

func newProxies() *proxies {
	return &proxies{
		pids: make(map[int]int), cuts: make(map[[2]int]bool), joined: make(map[int]bool), mended: make(chan struct{}),
	}
}

func (p *proxies) describe() string {
	return "proxies on loopback addresses (namespaces cannot be had here); cuts hold bytes back, clients are never cut off"
}

func (p *proxies) listen(i int) string    { return "127.77.1." + strconv.Itoa(10+i) }
func (p *proxies) advertise(i int) string { return "127.77.2." + strconv.Itoa(10+i) }

func (p *proxies) command(_ int, name string, args ...string) *exec.Cmd {
	return exec.Command(name, args...)
}

func (p *proxies) started(i, pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pids[i] = pid
}

func (p *proxies) join(i int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.joined[i] {
		return nil
	}
	for _, port := range []int{peerPort, gossipPort} {
		ln, err := net.Listen("tcp", net.JoinHostPort(p.advertise(i), strconv.Itoa(port)))
		if err != nil {
			return err
		}
		p.closer = append(p.closer, ln)
		p.wg.Go(func() { p.accept(i, port, ln) })
	}
	pc, err := net.ListenPacket("udp", net.JoinHostPort(p.advertise(i), strconv.Itoa(gossipPort)))
	if err != nil {
		return err
	}
	p.closer = append(p.closer, pc)
	p.wg.Go(func() { p.packets(i, pc) })
	p.joined[i] = true
	return nil
}

// accept passes the connections to slot i on.
func (p *proxies) accept(i, port int, ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return // closed
		}
		p.wg.Go(func() { p.pass(i, port, conn) })
	}
}

func (p *proxies) pass(to, port int, near net.Conn) {
	defer func() { _ = near.Close() }() // nothing is buffered in it
	from := p.owner(near)
	far, err := net.DialTimeout("tcp", net.JoinHostPort(p.listen(to), strconv.Itoa(port)), proxyDial)
	if err != nil {
		return // the node is down: the connection breaks, as it would without a proxy
	}
	defer func() { _ = far.Close() }()
	if !p.keep(near, far) {
		return
	}
	done := make(chan struct{}, 2)
	go func() { p.copy(far, near, from, to); done <- struct{}{} }()
	go func() { p.copy(near, far, to, from); done <- struct{}{} }()
	<-done
	_, _ = near.Close(), far.Close() // which ends the other direction
	<-done
}

// keep notes connections to be closed with the proxies; false when they are closed already.
func (p *proxies) keep(conns ...io.Closer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.closer = append(p.closer, conns...)
	return true
}

// copy moves bytes that travel from one slot to another, while nothing is cut between them.
func (p *proxies) copy(dst, src net.Conn, from, to int) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			p.passable(from, to)
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			p.passable(from, to) // the end of a connection cannot pass a cut either
			return
		}
	}
}

// passable waits until nothing is cut from one slot to the other.
func (p *proxies) passable(from, to int) {
	for {
		p.mu.Lock()
		open, mended := p.closed || !p.cuts[[2]int{from, to}], p.mended
		p.mu.Unlock()
		if open {
			return
		}
		<-mended
	}
}

// packets passes the datagrams to slot i on. A node sends them from the address that it listens at, so they say by
// themselves whose they are.
func (p *proxies) packets(i int, pc net.PacketConn) {
	buf := make([]byte, 64<<10)
	to := &net.UDPAddr{IP: net.ParseIP(p.listen(i)), Port: gossipPort}
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		host, _, err := net.SplitHostPort(from.String())
		if err != nil {
			continue
		}
		p.mu.Lock()
		drop := false
		for j := range p.joined {
			drop = drop || host == p.listen(j) && p.cuts[[2]int{j, i}]
		}
		p.mu.Unlock()
		if !drop {
			_, _ = pc.WriteTo(buf[:n], to) // a datagram may be lost
		}
	}
}

// owner finds the slot whose process opened a connection, by the socket's inode; -1 when it is nobody's.
func (p *proxies) owner(conn net.Conn) int {
	for deadline := time.Now().Add(identifyFor); ; time.Sleep(5 * time.Millisecond) {
		if inode := socketInode(conn.RemoteAddr().String(), conn.LocalAddr().String()); inode != "" {
			p.mu.Lock()
			pids := make(map[int]int, len(p.pids))
			for i, pid := range p.pids {
				pids[i] = pid
			}
			p.mu.Unlock()
			for i, pid := range pids {
				if hasSocket(pid, inode) {
					return i
				}
			}
		}
		if time.Now().After(deadline) {
			return -1
		}
	}
}

// socketInode looks a TCP socket up in /proc/net/tcp.
func socketInode(local, remote string) string {
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return ""
	}
	want, want2 := procAddr(local), procAddr(remote)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 9 && f[1] == want && f[2] == want2 {
			return f[9]
		}
	}
	return ""
}

// procAddr writes an IPv4 address as /proc/net/tcp does on a little-endian machine.
func procAddr(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	ip4 := net.ParseIP(host).To4()
	n, err := strconv.Atoi(port)
	if ip4 == nil || err != nil {
		return ""
	}
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", ip4[3], ip4[2], ip4[1], ip4[0], n)
}

func hasSocket(pid int, inode string) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && target == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

func (p *proxies) cut(from, to int, _ bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts[[2]int{from, to}] = true
	return nil
}

func (p *proxies) unplug(i int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for j := range p.joined {
		p.cuts[[2]int{i, j}], p.cuts[[2]int{j, i}] = true, true
	}
	return nil
}

func (p *proxies) mend() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.cuts)
	close(p.mended)
	p.mended = make(chan struct{})
	return nil
}

func (p *proxies) close() error {
	p.mu.Lock()
	p.closed = true
	close(p.mended)
	p.mended = make(chan struct{})
	closer := p.closer
	p.closer = nil
	p.mu.Unlock()
	for _, c := range closer {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	p.wg.Wait()
	return nil
}
