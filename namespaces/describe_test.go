package namespaces

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

func TestNames(t *testing.T) {
	b := newBox(t, allNamespaces)
	host, err := os.Hostname()
	must(t, err)
	want := &blob.Namespaces{Hostname: "frozen", Domainname: "example.org", LoopbackUp: true}
	must(t, Restore(t.Context(), b.pid, want))
	got, _, err := Describe(t.Context(), b.pid)
	must(t, err)
	if got.GetHostname() != "frozen" || got.GetDomainname() != "example.org" {
		t.Errorf("got %q and %q", got.GetHostname(), got.GetDomainname())
	}
	if !got.GetPrivateNet() || !got.GetLoopbackUp() {
		t.Error("the loopback is not up")
	}
	if now, err := os.Hostname(); err != nil || now != host {
		t.Errorf("the host is called %q now, %v", now, err)
	}
}

func TestLoopbackStaysDown(t *testing.T) {
	b := newBox(t, allNamespaces)
	must(t, Restore(t.Context(), b.pid, &blob.Namespaces{}))
	got, _, err := Describe(t.Context(), b.pid)
	must(t, err)
	if !got.GetPrivateNet() || got.GetLoopbackUp() {
		t.Errorf("got private %t, up %t", got.GetPrivateNet(), got.GetLoopbackUp())
	}
}

func TestHostNamespacesAreLeftAlone(t *testing.T) {
	b := newBox(t, unix.CLONE_NEWPID)
	got, _, err := Describe(t.Context(), b.pid)
	must(t, err)
	if got.GetHostname() != "" || got.GetPrivateNet() || len(got.GetTmpfs()) != 0 {
		t.Errorf("recorded of the host: %q, %v, %v", got.GetHostname(), got.GetPrivateNet(), got.GetTmpfs())
	}
	host, err := os.Hostname()
	must(t, err)
	must(t, Restore(t.Context(), b.pid, &blob.Namespaces{Hostname: "other", LoopbackUp: true}))
	if now, err := os.Hostname(); err != nil || now != host {
		t.Errorf("the host is called %q now, %v", now, err)
	}
}

func TestCheckRestore(t *testing.T) {
	b := newBox(t, allNamespaces)
	was, _, err := Describe(t.Context(), b.pid)
	must(t, err)
	if got := CheckRestore(t.Context(), b.pid, was); len(got) != 0 {
		t.Errorf("got %v for the same container", got)
	}
	was.UidMap, was.TimeOffsets = "0 100000 65536", "monotonic 5 0,boottime 5 0"
	was.Mounts = append(was.Mounts, &blob.Mount{Mountpoint: "/no/where"})
	got := CheckRestore(t.Context(), b.pid, was)
	if len(got) != 3 {
		t.Fatalf("got %v, want three", got)
	}
	for _, err := range got {
		if !errors.Is(err, errs.ErrHost) {
			t.Errorf("%v: want it to be the host's fault", err)
		}
	}
}

func TestMessageObjects(t *testing.T) {
	b := newBox(t, allNamespaces)
	if got := checkIPC(t.Context(), b.pid); len(got) != 0 {
		t.Fatalf("got %v in a new namespace", got)
	}
	must(t, within(b.pid, nsKind{"ipc", unix.CLONE_NEWIPC}, func() error {
		if _, err := unix.SysvShmGet(0x51a515, 4096, unix.IPC_CREAT|0o600); err != nil {
			return err
		}
		return makeQueue("stasis-queue")
	}))
	got := errors.Join(checkIPC(t.Context(), b.pid)...)
	if !errors.Is(got, errs.ErrUnsupported) {
		t.Fatalf("got %v", got)
	}
	for _, want := range []string{
		"system V shared memory segment 0 (key " + strconv.Itoa(0x51a515) + ")", "POSIX message queue /stasis-queue",
	} {
		if !strings.Contains(got.Error(), want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
}

// makeQueue makes a queue of the thread's IPC namespace as a file in the file
// system that shows them.
func makeQueue(name string) (err error) {
	fs, err := unix.Fsopen("mqueue", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fs)) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(root)) }()
	fd, err := unix.Openat(root, name, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func TestSysvTable(t *testing.T) {
	table := "       key      semid perms      nsems\n" +
		"         0          3   600          1\n" +
		"  -1234567          4   666          2\n"
	got := errors.Join(sysvTable(strings.NewReader(table), "semaphore set")...)
	want := "system V semaphore set 3 (key 0): not supported\nsystem V semaphore set 4 (key -1234567): not supported"
	if got == nil || got.Error() != want {
		t.Errorf("got %v", got)
	}
}

func TestDiffer(t *testing.T) {
	a := newBox(t, allNamespaces)
	if got := Differ(a.pid, a.pid); got != nil {
		t.Errorf("from itself: %v", got)
	}
	got := Differ(a.pid, os.Getpid())
	for _, kind := range []string{"mnt", "net", "uts", "ipc", "pid", "pid_for_children"} {
		if !slices.Contains(got, kind) {
			t.Errorf("%s is not in %v", kind, got)
		}
	}
	zombie := exec.Command("/bin/true")
	must(t, zombie.Start())
	t.Cleanup(func() { must(t, zombie.Wait()) })
	must(t, waitZombie(zombie.Process.Pid))
	if got := Differ(os.Getpid(), zombie.Process.Pid); got != nil {
		t.Errorf("a zombie differs in %v", got)
	}
}

// waitZombie waits until a child has ended and leaves it to be reaped.
func waitZombie(pid int) error {
	return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
}

func TestDifferUnbornNamespace(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	must(t, onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWPID); err != nil {
			return err
		}
		if got := Differ(os.Getpid(), unix.Gettid()); !slices.Equal(got, []string{"pid_for_children"}) {
			t.Errorf("got %v, want pid_for_children", got)
		}
		return nil
	}))
}

func TestCheck(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	got := errors.Join(Check(t.Context(), os.Getpid(), []int{os.Getpid(), 1 << 23}, dockerSpec())...)
	if !errors.Is(got, errs.ErrUnsupported) || !strings.Contains(got.Error(), "shares the host's pid namespace") {
		t.Errorf("got %v", got)
	}
	b, stranger := newBox(t, allNamespaces), newBox(t, unix.CLONE_NEWPID|unix.CLONE_NEWNS)
	got = errors.Join(Check(t.Context(), b.pid, []int{b.pid, stranger.pid}, dockerSpec())...)
	if got == nil || !strings.Contains(got.Error(), "pid 1 net namespace: is not its init's") {
		t.Errorf("got %v, want the task with another net namespace", got)
	}
}

func TestCheckTaskGone(t *testing.T) {
	for _, err := range []error{nil, os.ErrNotExist, &os.PathError{Err: syscall.ESRCH}} {
		if got := unlessGone(err); got != nil {
			t.Errorf("%v is told as %v", err, got)
		}
	}
	if got := unlessGone(syscall.EIO); len(got) != 1 {
		t.Errorf("EIO is told as %v", got)
	}
}
