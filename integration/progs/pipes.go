package main

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

// pipeCase is one pipe before the checkpoint.
type pipeCase struct {
	what   string
	flags  int
	size   int // capacity; 0: as made
	fill   []int
	noRead bool // the reading end is closed
	noSend bool // the writing end is closed
}

func pipeCases() []pipeCase {
	return []pipeCase{
		{what: "empty"},
		{what: "some bytes", fill: []int{5, 100}},
		{what: "many bytes, not blocking", flags: unix.O_NONBLOCK | unix.O_CLOEXEC, fill: []int{40000}},
		{what: "small", size: 4096, fill: []int{4096}},
		{what: "large", size: 1 << 20, fill: []int{300000, 300000}},
		{what: "for packets, empty", flags: unix.O_DIRECT},
		{what: "without a writer", fill: []int{11}, noSend: true},
		{what: "without a reader", noRead: true},
	}
}

type pipe struct {
	pipeCase
	r, w int
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}
	return b
}

func makePipe(c pipeCase) (pipe, error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], c.flags); err != nil {
		return pipe{}, err
	}
	p := pipe{c, fd[0], fd[1]}
	if c.size != 0 {
		if _, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, c.size); err != nil {
			return p, fmt.Errorf("capacity %d: %w", c.size, err)
		}
	}
	for i, n := range c.fill {
		if _, err := unix.Write(p.w, pattern(n, i)); err != nil {
			return p, err
		}
	}
	if c.noSend {
		return p, unix.Close(p.w)
	}
	if c.noRead {
		return p, unix.Close(p.r)
	}
	return p, nil
}

// packets reads what was written as it was written; a stream is one packet.
func (p pipe) packets() error {
	var parts [][]byte
	for i, n := range p.fill {
		parts = append(parts, pattern(n, i))
	}
	if p.flags&unix.O_DIRECT == 0 {
		parts = [][]byte{bytes.Join(parts, nil)}
	}
	for _, part := range parts {
		got, buf := []byte(nil), make([]byte, 1<<20)
		for len(got) < len(part) {
			n, err := unix.Read(p.r, buf)
			if err != nil || n == 0 {
				return fmt.Errorf("read: %d bytes after %d (%w), want %d", n, len(got), err, len(part))
			}
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got, part) {
			return fmt.Errorf("contents: %d bytes, want %d and the same", len(got), len(part))
		}
	}
	return nil
}

func (p pipe) capacity() error {
	fd := p.r
	if p.noRead {
		fd = p.w
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	want := p.size
	if want == 0 {
		want = 65536
	}
	return first(err, eq("capacity", n, want))
}

// status looks at the writing end, which alone carries O_DIRECT.
func (p pipe) status() error {
	fd := p.w
	if p.noSend {
		fd = p.r
	}
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	const kept = unix.O_NONBLOCK | unix.O_DIRECT
	cl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return first(err, eq("flags", fl&kept, p.flags&kept), eq("close-on-exec", cl != 0, p.flags&unix.O_CLOEXEC != 0))
}

// ends checks that the ends are connected with each other, or alone.
func (p pipe) ends() error {
	b := make([]byte, 10)
	switch {
	case p.noSend:
		n, err := unix.Read(p.r, b)
		return first(err, eq("bytes at the end", n, 0))
	case p.noRead:
		_, err := unix.Write(p.w, b)
		return wantErr("write without a reader", err, unix.EPIPE)
	}
	if _, err := unix.Write(p.w, []byte("after")); err != nil {
		return err
	}
	n, err := unix.Read(p.r, b)
	return first(err, eq("what was written afterwards", string(b[:max(n, 0)]), "after"))
}

func (p pipe) check() error {
	if err := first(p.capacity(), p.status(), p.packets(), p.ends()); err != nil {
		return fmt.Errorf("pipe %s: %w", p.what, err)
	}
	return nil
}

func pipes() (func() error, error) {
	var all []pipe
	for _, c := range pipeCases() {
		p, err := makePipe(c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.what, err)
		}
		all = append(all, p)
	}
	return func() error {
		for _, p := range all {
			if err := p.check(); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// packets wait in a pipe whose limits between them only a reader sees.
func packets() (func() error, error) {
	p, err := makePipe(pipeCase{what: "packets", flags: unix.O_DIRECT, fill: []int{3, 50, 7}})
	return p.check, err
}

// fifos are pipes with a name: one with both ends, one opened for both at once.
func fifos() (func() error, error) {
	var all []pipe
	for i, c := range []pipeCase{{what: "named", fill: []int{9, 10000}}, {what: "named, both at once", fill: []int{6}}} {
		path := fmt.Sprintf("%sfifo%d", ctl, i)
		if err := unix.Mkfifo(path, 0o640); err != nil {
			return nil, err
		}
		rw, err := unix.Open(path, unix.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		p := pipe{c, rw, rw}
		if i == 0 {
			if p.r, err = unix.Open(path, unix.O_RDONLY, 0); err != nil {
				return nil, err
			}
			if p.w, err = unix.Open(path, unix.O_WRONLY, 0); err != nil {
				return nil, err
			}
			if err := unix.Close(rw); err != nil {
				return nil, err
			}
		}
		for i, n := range c.fill {
			if _, err := unix.Write(p.w, pattern(n, i)); err != nil {
				return nil, err
			}
		}
		all = append(all, p)
	}
	return func() error {
		var a, b unix.Stat_t
		if err := first(unix.Fstat(all[0].r, &a), unix.Stat(ctl+"fifo0", &b)); err != nil {
			return err
		}
		return first(all[0].check(), all[1].check(), eq("inode of a fifo", a.Ino, b.Ino))
	}, nil
}
