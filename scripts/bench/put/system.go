package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// system is three processes of one kind.
type system struct {
	procs   []*exec.Cmd
	exited  []chan error
	connect func(i int) (client, error)
}

// serverCore and loadCore keep servers and load apart, as far as there are two cores.
const serverCore, loadCore = 0, 1

func pinSelf() error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return err
	}
	if !set.IsSet(serverCore) || !set.IsSet(loadCore) {
		return errors.New("there are no two cores")
	}
	set.Zero()
	set.Set(loadCore)
	tasks, err := os.ReadDir("/proc/self/task")
	for _, t := range tasks { // the runtime's threads exist already; later ones inherit
		tid, _ := strconv.Atoi(t.Name())
		err = errors.Join(err, unix.SchedSetaffinity(tid, &set))
	}
	return err
}

func (s *system) start(dir, name string, args ...string) error {
	log, err := os.Create(filepath.Join(dir, fmt.Sprintf("%d.log", len(s.procs))))
	if err != nil {
		return err
	}
	defer log.Close()
	if path, err := exec.LookPath("taskset"); err == nil {
		args = append([]string{"-c", strconv.Itoa(serverCore), name}, args...)
		name = path
	}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	s.procs, s.exited = append(s.procs, cmd), append(s.exited, exited)
	return nil
}

func (s *system) stop() error {
	var errs []error
	for i, p := range s.procs {
		errs = append(errs, p.Process.Kill())
		<-s.exited[i]
	}
	return errors.Join(errs...)
}

// cpu is the CPU time of all processes so far.
func (s *system) cpu() (time.Duration, error) {
	var ticks int64
	for _, p := range s.procs {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
		if err != nil {
			return 0, fmt.Errorf("a server has ended: %w", err)
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, f := range fields[11:13] { // utime, stime; see proc_pid_stat(5)
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100, nil
}

// ports finds n free ones. They are free again when they are used, so somebody else could take them; then the start fails.
func ports(n int) ([]int, error) {
	var out []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out, nil
}

const nodes = 3

func startKvmesh(ctx context.Context, binary, dir string) (_ *system, err error) {
	key := filepath.Join(dir, "mesh.key")
	secret, err := exec.CommandContext(ctx, binary, "mesh-key", "new").Output()
	if err == nil {
		err = os.WriteFile(key, secret, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("mesh key: %w", err)
	}
	free, err := ports(4 * nodes)
	if err != nil {
		return nil, err
	}
	addr := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(free[i])) }
	s := new(system)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	var https []string
	for i := range nodes {
		var seeds []string
		for j := range nodes {
			if j != i {
				seeds = append(seeds, addr(4*j+2))
			}
		}
		https = append(https, addr(4*i))
		if err := s.start(dir, binary, "serve", "--role", "voter", "--region", "here", "--mesh-key", key,
			"--data-dir", filepath.Join(dir, strconv.Itoa(i)), "--bootstrap-expect", strconv.Itoa(nodes),
			"--http", addr(4*i), "--peer", addr(4*i+1), "--gossip", addr(4*i+2), "--admin", addr(4*i+3),
			"--join", strings.Join(seeds, ",")); err != nil {
			return nil, err
		}
	}
	s.connect = func(i int) (client, error) { return dialHTTP(https[i%nodes]) }
	return s, s.await(ctx)
}

func startEtcd(ctx context.Context, binary, dir string) (_ *system, err error) {
	free, err := ports(2 * nodes)
	if err != nil {
		return nil, err
	}
	url := func(i int) string { return "http://127.0.0.1:" + strconv.Itoa(free[i]) }
	var initial, endpoints []string
	for i := range nodes {
		initial = append(initial, fmt.Sprintf("n%d=%s", i, url(2*i+1)))
		endpoints = append(endpoints, url(2*i))
	}
	s := new(system)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	for i := range nodes {
		if err := s.start(dir, binary, "--name", fmt.Sprintf("n%d", i), "--data-dir", filepath.Join(dir, strconv.Itoa(i)),
			"--listen-client-urls", url(2*i), "--advertise-client-urls", url(2*i), "--listen-peer-urls", url(2*i+1),
			"--initial-advertise-peer-urls", url(2*i+1), "--initial-cluster", strings.Join(initial, ","),
			"--initial-cluster-state", "new", "--quota-backend-bytes", strconv.Itoa(8<<30)); err != nil {
			return nil, err
		}
	}
	s.connect = func(i int) (client, error) {
		c, err := clientv3.New(clientv3.Config{Endpoints: endpoints[i%nodes : i%nodes+1], DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
		return etcdClient{c}, err
	}
	return s, s.await(ctx)
}

// await waits until a write succeeds at every node.
func (s *system) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for i := range nodes {
		for {
			err := s.try(ctx, i)
			if err == nil {
				break
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("not ready after 60 s: %w", err)
			}
		}
	}
	return nil
}

func (s *system) try(ctx context.Context, i int) error {
	c, err := s.connect(i)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return errors.Join(c.put(ctx, "ready", []byte("?")), c.close())
}
