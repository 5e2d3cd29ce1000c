package blob

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/errs"
)

const (
	maxBodyOfFile = 64 << 20
	maxPipe       = 64 << 20 // far above any fs.pipe-max-size seen
	maxOwnerType  = 2        // F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP
)

func (v *validator) files() (err error) {
	if v.filesByID, err = index("file", v.img.Files); err != nil {
		return err
	}
	if len(v.img.Files) > maxFiles {
		return bad("%d files", len(v.img.Files))
	}
	for _, f := range v.img.Files {
		if err := file(f); err != nil {
			return in(err, "file %d", f.Id)
		}
	}
	return nil
}

func file(f *File) error {
	switch {
	case f.Kind == "" || len(f.Kind) > 32:
		return bad("kind %.64q", f.Kind)
	case f.Rev == 0:
		return bad("revision 0")
	case len(f.Body) > maxBodyOfFile:
		return bad("body of %d bytes", len(f.Body))
	case f.Pos > maxOffset:
		return bad("position %d", f.Pos)
	}
	if err := owner(f.Owner); err != nil {
		return err
	}
	return text("name", f.Name, 2*maxPath)
}

func owner(o *Owner) error {
	if !between(o.GetType(), maxOwnerType) || !between(o.GetPid(), maxPID) || !between(o.GetSignal(), maxSignal) {
		return bad("owner %d %d, signal %d", o.GetType(), o.GetPid(), o.GetSignal())
	}
	return nil
}

func between(n, most int32) bool { return n >= 0 && n <= most }

func (v *validator) tables() (err error) {
	if v.tablesByID, err = index("descriptor table", v.img.FDTables); err != nil {
		return err
	}
	for _, t := range v.img.FDTables {
		last := int32(-1)
		for _, fd := range t.Fds {
			if fd.Fd <= last || fd.Fd >= maxFD {
				return bad("descriptor table %d: fd %d after fd %d", t.Id, fd.Fd, last)
			}
			if v.filesByID[fd.File] == nil {
				return bad("descriptor table %d: fd %d: no file %d", t.Id, fd.Fd, fd.File)
			}
			last = fd.Fd
		}
	}
	return nil
}

// bodies checks what the bodies of files name. A kind that is not known here is
// left to whoever restores it.
func (v *validator) bodies() error {
	for _, f := range v.img.Files {
		if err := v.body(f); err != nil {
			return in(err, "file %d (%s)", f.Id, f.Kind)
		}
	}
	return nil
}

// body checks the body of one file.
func (v *validator) body(f *File) error {
	switch f.Kind {
	case "path":
		return decoded(f, &PathFile{}, func(b *PathFile) error { return path(b.Path) })
	case "ghost":
		return decoded(f, &GhostFile{}, func(b *GhostFile) error {
			if v.contentsByID[b.Contents] == nil {
				return bad("no contents %d", b.Contents)
			}
			return path(b.Path)
		})
	case "memfd":
		return decoded(f, &MemFD{}, func(b *MemFD) error {
			if v.contentsByID[b.Contents] == nil {
				return bad("no contents %d", b.Contents)
			}
			return text("name", b.Name, 255)
		})
	case "external":
		return decoded(f, &External{}, func(b *External) error {
			if b.Index > 2 {
				return bad("stdio %d", b.Index)
			}
			return nil
		})
	case "pipe", "fifo":
		return decoded(f, &Pipe{}, func(b *Pipe) error { return pipe(b, f.Kind == "fifo") })
	case "timerfd":
		return decoded(f, &TimerFD{}, func(b *TimerFD) error {
			if b.ValueNs < 0 || b.IntervalNs < 0 {
				return bad("%d ns left, interval %d ns", b.ValueNs, b.IntervalNs)
			}
			return nil
		})
	case "epoll":
		return decoded(f, &EPoll{}, v.epoll)
	case "unix":
		return decoded(f, &UnixSocket{}, unixSocket)
	case "inet":
		return decoded(f, &InetSocket{}, inetSocket)
	case "eventfd":
		return decoded(f, &EventFD{}, func(*EventFD) error { return nil })
	case "signalfd":
		return decoded(f, &SignalFD{}, func(*SignalFD) error { return nil })
	}
	return nil
}

// decoded calls check with the body of f. m gives the type, and is filled.
func decoded[M proto.Message](f *File, m M, check func(M) error) error {
	if f.Rev != 1 {
		return fmt.Errorf("revision %d: %w", f.Rev, errs.ErrVersion)
	}
	if err := decode(f.Body, m); err != nil {
		return in(err, "body")
	}
	return check(m)
}

func pipe(b *Pipe, named bool) error {
	if b.Size > maxPipe || uint64(len(b.Data)) > uint64(b.Size) {
		return bad("%d bytes in a pipe of %d", len(b.Data), b.Size)
	}
	if named {
		return path(b.Path)
	}
	return nil
}

// epoll checks that what is watched is there.
func (v *validator) epoll(b *EPoll) error {
	for _, e := range b.Entries {
		switch {
		case e.Fd < 0 || e.Fd >= maxFD:
			return bad("watches fd %d", e.Fd)
		case v.filesByID[e.File] == nil:
			return bad("watches file %d, which is not there", e.File)
		case v.processByPID[e.Pid] == nil:
			return bad("watches for process %d, which is not there", e.Pid)
		}
	}
	return nil
}

func unixSocket(b *UnixSocket) error {
	if len(b.Name) > 108 || b.Shutdown > 3 {
		return bad("address of %d bytes, shutdown %d", len(b.Name), b.Shutdown)
	}
	if b.Dir != "" {
		return path(b.Dir)
	}
	return nil
}

func inetSocket(b *InetSocket) error {
	for _, a := range [][]byte{b.Local, b.Remote} {
		if n := len(a); n != 0 && n != 4 && n != 16 {
			return bad("address of %d bytes", n)
		}
	}
	if b.LocalPort > 0xffff || b.RemotePort > 0xffff {
		return bad("ports %d and %d", b.LocalPort, b.RemotePort)
	}
	return nil
}
