package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hostname changes the host's and the domain's name after the start.
func hostname() (func() error, error) {
	err := first(unix.Sethostname([]byte("renamed")), unix.Setdomainname([]byte("example.org")))
	if err != nil {
		return nil, err
	}
	return func() error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		return first(eq("hostname", unix.ByteSliceToString(u.Nodename[:]), "renamed"),
			eq("domain name", unix.ByteSliceToString(u.Domainname[:]), "example.org"))
	}, nil
}

// tmpfs fills the file systems in memory with one node of each kind.
func tmpfs() (func() error, error) {
	for _, dir := range []string{"/tmp", "/dev/shm"} {
		if err := plant(dir); err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
	}
	was := census("/tmp") + census("/dev/shm")
	return func() error { return eq("contents of the tmpfs", census("/tmp")+census("/dev/shm"), was) }, nil
}

func plant(dir string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	then := time.Unix(1234567890, 987654321)
	err := first(
		os.Mkdir(at("sub"), 0o755), os.Chmod(at("sub"), 0o751|os.ModeSticky), os.Mkdir(at("sub/deep"), 0o700),
		os.WriteFile(at("sub/file"), pattern(70000, 9), 0o640), os.WriteFile(at("empty"), nil, 0o600),
		os.Link(at("sub/file"), at("hard")), os.Symlink("sub/nowhere", at("soft")), unix.Mkfifo(at("fifo"), 0o604),
		os.WriteFile(at("odd\nname \xff"), []byte("odd"), 0o644), os.Chmod(at("empty"), 0o4711),
		unix.Setxattr(at("sub/file"), "user.note", []byte("kept"), 0), os.Chtimes(at("sub/file"), then, then),
		os.Truncate(at("empty"), 1<<30), os.Chtimes(at("sub"), then, then),
	)
	if os.Getuid() == 0 {
		err = first(err, os.Chown(at("sub/deep"), 12, 34), os.Lchown(at("soft"), 5, 6))
	}
	return err
}

// census describes a tree, one line for each name.
func census(dir string) string {
	var lines []string
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: no stat", path)
		}
		line := fmt.Sprintf("%q %v %d:%d size %d links %d", path, info.Mode(), st.Uid, st.Gid, sizeOf(info), st.Nlink)
		if info.Mode().IsRegular() || path != dir && info.IsDir() {
			line += " " + info.ModTime().UTC().String()
		}
		if info.Mode().IsRegular() && info.Size() < 1<<20 {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			note := make([]byte, 20)
			n, _ := unix.Getxattr(path, "user.note", note) //nolint:errcheck // most have none
			line += fmt.Sprintf(" %x %q", text[:min(len(text), 40)], note[:max(n, 0)])
		}
		if to, err := os.Readlink(path); err == nil {
			line += " -> " + to
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		return err.Error()
	}
	sort.Strings(lines)
	return strings.Join(lines, "; ")
}

// sizeOf leaves out the size of a folder, which is the file system's own affair.
func sizeOf(info os.FileInfo) int64 {
	if info.IsDir() {
		return 0
	}
	return info.Size()
}

// goRuntime keeps everything of a Go program busy: goroutines, channels, the
// collector, timers and the network poller.
func goRuntime() (func() error, error) {
	runtime.GOMAXPROCS(4)
	ctx, cancel := context.WithCancel(context.Background())
	var laps, ticks, echoes atomic.Int64
	ring(ctx, &laps)
	go garbage(ctx)
	go ticker(ctx, &ticks)
	if err := echo(ctx, &echoes); err != nil {
		cancel()
		return nil, err
	}
	for laps.Load() < 3 || ticks.Load() < 3 || echoes.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	return func() error {
		defer cancel()
		for what, n := range map[string]*atomic.Int64{"ring": &laps, "ticker": &ticks, "echo": &echoes} {
			was := n.Load()
			for end := time.Now().Add(10 * time.Second); n.Load() < was+5; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					return fmt.Errorf("%s: %d laps in 10 s, want 5", what, n.Load()-was)
				}
			}
		}
		return nil
	}, nil
}

// ring passes a token round a hundred goroutines.
func ring(ctx context.Context, laps *atomic.Int64) {
	start := make(chan int)
	in := start
	for range 100 {
		out := make(chan int)
		go func(in <-chan int, out chan<- int) {
			for v := range in {
				out <- v + 1
			}
		}(in, out)
		in = out
	}
	go func() {
		for v := 0; ctx.Err() == nil; laps.Add(1) {
			start <- v
			if v = <-in; v%100 != 0 {
				panic(fmt.Sprintf("token %d, want a multiple of 100", v))
			}
		}
	}()
}

func garbage(ctx context.Context) {
	for keep := make([][]byte, 64); ctx.Err() == nil; {
		for i := range keep {
			keep[i] = pattern(1000+i*100, i)
		}
		for i, b := range keep {
			if b[i] != pattern(i+1, i)[i] {
				panic("memory changed")
			}
		}
		time.Sleep(time.Millisecond)
	}
}

func ticker(ctx context.Context, ticks *atomic.Int64) {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			ticks.Add(1)
		}
	}
}

// echo serves itself over a pipe-like connection through the poller.
func echo(ctx context.Context, echoes *atomic.Int64) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	go func() {
		b := make([]byte, 1)
		for ctx.Err() == nil {
			if n, err := ends[1].Read(b); n != 1 || err != nil {
				panic(fmt.Sprintf("echo read %d bytes: %v", n, err))
			}
			echoes.Add(1)
		}
	}()
	go func() {
		for ctx.Err() == nil {
			if _, err := ends[0].Write([]byte{1}); err != nil {
				panic(fmt.Sprintf("echo write: %v", err))
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return nil
}
