package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// refusals hold objects that a checkpoint must refuse by name. Nothing may happen
// to them, so each checks that its object still works.
func refusals() []program {
	return []program{
		{"inotify", inotify},
		{"netlink", netlink},
		{"packet", packet},
		{"tcp", tcpConnected},
		{"flight", inFlight},
		{"sysv", sysvShm},
		{"mqueue", mqueue},
		{"traced", traced},
		{"mounted", mounted},
		{"pidns", pidns},
		{"pidfd", pidFD},
		{"lock", lockHeld},
		{"packets", packets},
	}
}

func refused() (func() error, error) {
	for _, p := range refusals() {
		if len(os.Args) > 2 && p.name == os.Args[2] {
			return p.make()
		}
	}
	return nil, fmt.Errorf("no refusal %q", os.Args[2:])
}

func inotify() (func() error, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, ctl, unix.IN_CREATE); err != nil {
		return nil, err
	}
	return func() error {
		if err := put("noticed", ""); err != nil {
			return err
		}
		n, err := unix.Read(fd, make([]byte, 4096))
		return first(err, eq("an event came", n > 0, true))
	}, nil
}

func netlink() (func() error, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	return func() error { _, err := unix.Getsockname(fd); return err }, nil
}

func packet() (func() error, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	return func() error { _, err := unix.Getsockname(fd); return err }, nil
}

// tcpConnected has both ends of a connection.
func tcpConnected() (func() error, error) {
	l := &listener{what: "listener", domain: unix.AF_INET}
	if err := l.listen(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}, 1); err != nil {
		return nil, err
	}
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(c, l.to); err != nil {
		return nil, err
	}
	s, _, err := unix.Accept(l.fd)
	if err != nil {
		return nil, err
	}
	return func() error {
		if _, err := unix.Write(c, []byte("x")); err != nil {
			return err
		}
		n, err := unix.Read(s, make([]byte, 2))
		return first(err, eq("bytes", n, 1))
	}, nil
}

// inFlight is a descriptor that was sent and not received.
func inFlight() (func() error, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Sendmsg(fds[0], []byte("x"), unix.UnixRights(0), nil, 0); err != nil {
		return nil, err
	}
	return func() error {
		oob := make([]byte, 64)
		_, n, _, _, err := unix.Recvmsg(fds[1], make([]byte, 2), oob, 0)
		return first(err, eq("a descriptor came", n > 0, true))
	}, nil
}

func sysvShm() (func() error, error) {
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o600)
	if err != nil {
		return nil, err
	}
	mem, err := unix.SysvShmAttach(id, 0, 0)
	if err != nil {
		return nil, err
	}
	mem[0] = 7
	return func() error { return eq("byte", mem[0], 7) }, nil
}

// mqueue is made by its file system: the library has no mq_open.
func mqueue() (func() error, error) {
	f, err := os.OpenFile("/dev/mqueue/q", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return func() error { _, err := f.Stat(); return err }, nil
}

// traced has a child that it traces.
func traced() (func() error, error) {
	cmd := exec.Command("/bin/cprogs", "list")
	cmd.SysProcAttr = &unix.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(cmd.Process.Pid, &ws, 0, nil); err != nil {
		return nil, err
	}
	return func() error {
		if err := unix.PtraceDetach(cmd.Process.Pid); err != nil {
			return err
		}
		return cmd.Wait()
	}, nil
}

func mounted() (func() error, error) {
	at := filepath.Join(ctl, "mnt")
	err := first(os.Mkdir(at, 0o755), unix.Mount("/bin", at, "", unix.MS_BIND, ""))
	return func() error {
		_, err := os.Stat(filepath.Join(at, "progs"))
		return errors.Join(err, unix.Unmount(at, 0))
	}, err
}

// pidns has a child in a pid namespace of its own.
func pidns() (func() error, error) {
	cmd := exec.Command("/bin/progs", "wait")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return cmd.Wait, nil
}

// waitGo is the other process of a program.
func waitGo() {
	for {
		if _, err := os.Lstat(ctl + "go"); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func pidFD() (func() error, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, err
	}
	return func() error { return unix.PidfdSendSignal(fd, 0, nil, 0) }, nil
}

// lockHeld is refused without --file-locks.
func lockHeld() (func() error, error) {
	fd, err := unix.Open(ctl, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return nil, err
	}
	return func() error { return unix.Flock(fd, unix.LOCK_UN) }, nil
}
