package cr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
)

func TestVMAKind(t *testing.T) {
	const unsupported = blob.VMA_Kind(-1)
	const skipped = blob.VMA_Kind(-2)
	file := procfs.Mapping{Inode: 7, Name: "/bin/sh"}
	for _, c := range []struct {
		m     procfs.Mapping
		flags procfs.VMFlag
		want  blob.VMA_Kind
	}{
		{procfs.Mapping{}, 0, blob.VMA_ANON},
		{procfs.Mapping{Name: "[heap]"}, 0, blob.VMA_ANON},
		{procfs.Mapping{Name: "[stack]"}, procfs.VMGrowsDown, blob.VMA_ANON},
		{procfs.Mapping{Name: "[anon:name]"}, 0, blob.VMA_ANON},
		{procfs.Mapping{Name: "[vsyscall]"}, 0, skipped},
		{procfs.Mapping{Name: "[vdso]"}, procfs.VMIO, blob.VMA_VDSO},
		{procfs.Mapping{Name: "[vvar]"}, procfs.VMPFNMap, blob.VMA_VVAR},
		{procfs.Mapping{Name: "[vvar_vclock]"}, procfs.VMIO | procfs.VMPFNMap, blob.VMA_VVAR},
		{file, 0, blob.VMA_FILE},
		{procfs.Mapping{Inode: 7, Name: "/bin/sh (deleted)"}, 0, blob.VMA_FILE},
		{procfs.Mapping{Inode: 7, Name: "/data", Shared: true}, 0, blob.VMA_FILE},
		{procfs.Mapping{Inode: 7, Name: "/memfd:x (deleted)", Shared: true}, 0, blob.VMA_FILE},
		{procfs.Mapping{Inode: 9, Name: "/dev/zero (deleted)", Shared: true}, 0, blob.VMA_SHMEM},
		{procfs.Mapping{Shared: true}, 0, unsupported},
		{procfs.Mapping{Inode: 9, Name: "/SYSV00000000 (deleted)", Shared: true}, 0, unsupported},
		{procfs.Mapping{Inode: 9, Name: "/[aio] (deleted)", Shared: true}, 0, unsupported},
		{procfs.Mapping{Inode: 9, Name: "anon_inode:[io_uring]", Shared: true}, 0, unsupported},
		{procfs.Mapping{Inode: 9, Name: "/dev/fb0", Shared: true}, procfs.VMIO, unsupported},
		{procfs.Mapping{}, procfs.VMHugeTLB, unsupported},
		{procfs.Mapping{}, procfs.VMShadowStack, unsupported},
		{procfs.Mapping{}, procfs.VMUffdMissing, unsupported},
		{file, procfs.VMUffdWP, unsupported},
		{procfs.Mapping{}, procfs.VMDroppable, unsupported},
	} {
		kind, skip, err := vmaKind(&procfs.SMap{Mapping: c.m, Flags: c.flags})
		switch {
		case c.want == unsupported:
			if !errors.Is(err, errs.ErrUnsupported) {
				t.Errorf("%+v %x: %v, %v", c.m, c.flags, kind, err)
			}
		case c.want == skipped:
			if !skip || err != nil {
				t.Errorf("%+v is not skipped, %v", c.m, err)
			}
		case kind != c.want || skip || err != nil:
			t.Errorf("%+v %x: %v, %v, %v; want %v", c.m, c.flags, kind, skip, err, c.want)
		}
	}
}

// stateRoot has one container as runc would have written it.
func stateRoot(t *testing.T, state any) string {
	t.Helper()
	root := t.TempDir()
	b, ok := state.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(state); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "c1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "c1", "state.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}

func ownState(t *testing.T) map[string]any {
	t.Helper()
	st, err := procfs.ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"id": "c1", "init_process_pid": os.Getpid(), "init_process_start": st.StartTime,
		"cgroup_paths":         map[string]string{"": "/sys/fs/cgroup/c1"},
		"external_descriptors": []string{"/dev/null", "pipe:[1]", "pipe:[2]"},
		"config":               map[string]any{"labels": []string{"x=y", "bundle=/run/b"}, "rootfs": "/r"},
	}
}

func TestFromRunc(t *testing.T) {
	c := &container{id: "c1"}
	paths, err := c.fromRunc(stateRoot(t, ownState(t)))
	if err != nil {
		t.Fatal(err)
	}
	if c.initPID != os.Getpid() || c.bundle != "/run/b" || len(c.externals) != 3 || paths[""] != "/sys/fs/cgroup/c1" {
		t.Errorf("%+v, %v", c, paths)
	}
}

func TestFromRuncRefuses(t *testing.T) {
	with := func(key string, v any) map[string]any {
		m := ownState(t)
		m[key] = v
		return m
	}
	for name, state := range map[string]any{
		"another start time: the pid is another's": with("init_process_start", 1),
		"nobody":               with("init_process_pid", 1<<30),
		"no pid":               with("init_process_pid", 0),
		"a negative pid":       with("init_process_pid", -1),
		"a pid that is text":   with("init_process_pid", "7"),
		"no JSON":              []byte("{"),
		"nothing":              []byte(""),
		"JSON of another kind": []byte("[]"),
	} {
		c := &container{id: "c1"}
		if _, err := c.fromRunc(stateRoot(t, state)); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := &container{id: "c2"}
	if _, err := c.fromRunc(stateRoot(t, ownState(t))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another id: %v", err)
	}
}

// TestHostileIDs: an id names a directory and nothing else.
func TestHostileIDs(t *testing.T) {
	root := stateRoot(t, ownState(t))
	for _, id := range []string{"", ".", "..", "/", "../c1", "c1/../c1", "c1/", "/c1", "a/b", "c1/.", "c1\x00"} {
		c := &container{id: id}
		if _, err := c.fromRunc(root); err == nil {
			t.Errorf("%q was found", id)
		}
	}
}

func FuzzRuncState(f *testing.F) {
	f.Add([]byte(`{"init_process_pid":1,"init_process_start":2,"config":{"labels":["bundle=/b"]}}`))
	root := f.TempDir()
	if err := os.Mkdir(filepath.Join(root, "c"), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(root, "c", "state.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		c := &container{id: "c"}
		if _, err := c.fromRunc(root); err != nil && c.initPID != 0 {
			t.Errorf("%v, and yet pid %d", err, c.initPID)
		}
	})
}

// fakeRuntime is a program that answers as an OCI runtime.
func fakeRuntime(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFromRuntime(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{`echo '{"status":"running","pid":42,"bundle":"/b"}'`, ""},
		{`echo '{"status":"paused","pid":42,"bundle":"/b"}'`, ""},
		{`echo '{"status":"stopped","pid":0}'`, "container c1 is stopped, not running"},
		{`echo '{"status":"running","pid":-3}'`, "container c1 is running, not running"},
		{`echo nonsense`, "container c1: "},
		{`echo one >&2; echo two >&2; exit 1`, "runtime state: one; two"},
		{`exit 3`, "runtime state: exit status 3"},
	} {
		k := &container{id: "c1", runtime: fakeRuntime(t, c.script), args: []string{"--root", "/r"}}
		_, err := k.fromRuntime(t.Context())
		switch {
		case c.want == "" && (err != nil || k.initPID != 42 || k.bundle != "/b"):
			t.Errorf("%s: %+v, %v", c.script, k, err)
		case c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)):
			t.Errorf("%s: %v, want %s", c.script, err, c.want)
		}
	}
}

func TestLastError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for text, want := range map[string]string{
		"": "",
		`{"level":"error","msg":"one"}` + "\n" + `{"level":"error","msg":"two"}` + "\n" + `{"level":"info","msg":"three"}`: "two",
		"not json\n" + `{"level":"error","msg":"one"}` + "\n{":                                                             "one",
		`{"level":"warning","msg":"w"}`: "",
		`[1]` + "\n" + `"error"`:        "",
		strings.Repeat("x", logCapSize+1) + "\n" + `{"level":"error","msg":"one"}`: "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastError(path); got != want {
			t.Errorf("%.40q: %q, want %q", text, got, want)
		}
	}
	if got := lastError(path + "x"); got != "" {
		t.Errorf("no file: %q", got)
	}
}

func TestWritePidFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	for _, pid := range []int{12345, 7} { // the second replaces a longer one
		if err := writePidFile(path, pid); err != nil {
			t.Fatal(err)
		}
		if got, err := readPid(path); err != nil || got != pid {
			t.Errorf("%d, %v", got, err)
		}
	}
	if err := writePidFile("", 1); err != nil {
		t.Errorf("none wanted: %v", err)
	}
	if err := writePidFile(filepath.Join(path, "x"), 1); err == nil {
		t.Error("a file as directory went well")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "pid"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writePidFile(filepath.Join(dir, "pid"), 1); err == nil {
		t.Error("a directory was replaced")
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("%v is left, %v", names, err)
	}
}

func TestCheckHost(t *testing.T) {
	here, err := hostFacts()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*blob.Host)
		want   string
	}{
		"this host":                         {func(*blob.Host) {}, ""},
		"another kernel with the same vdso": {func(h *blob.Host) { h.KernelRelease = "9.9" }, ""},
		"another machine":                   {func(h *blob.Host) { h.Machine = "aarch64" }, "aarch64"},
		"another page size":                 {func(h *blob.Host) { h.PageSize = 65536 }, "65536"},
		"another vdso":                      {func(h *blob.Host) { h.VdsoDigest = []byte("x") }, "vdso"},
		"no vdso":                           {func(h *blob.Host) { h.VdsoDigest = nil }, "vdso"},
	} {
		h := proto.CloneOf(here)
		c.change(h)
		err := checkHost(&blob.Image{Host: h}, slog.New(slog.DiscardHandler))
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, errs.ErrHost) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var log strings.Builder
	h := proto.CloneOf(here)
	h.MonotonicNs = 1 << 62
	if err := checkHost(&blob.Image{Host: h}, slog.New(slog.NewTextHandler(&log, nil))); err != nil || !strings.Contains(log.String(), "monotonic") {
		t.Errorf("a clock that is behind: %v, %q", err, log.String())
	}
}

func TestHugePool(t *testing.T) {
	pool := func(change func(*procfs.SMap)) *procfs.SMap {
		m := &procfs.SMap{
			Mapping: procfs.Mapping{Inode: 5, Name: "/anon_hugepage (deleted)"}, Flags: procfs.VMHugeTLB, KernelPageSize: 2 << 20,
		}
		change(m)
		return m
	}
	for name, c := range map[string]struct {
		m    *procfs.SMap
		want string
	}{
		"private":          {pool(func(*procfs.SMap) {}), ""},
		"shared":           {pool(func(m *procfs.SMap) { m.Shared = true }), "hugetlbfs"},
		"larger":           {pool(func(m *procfs.SMap) { m.KernelPageSize = 1 << 30 }), "hugetlbfs"},
		"of a file system": {pool(func(m *procfs.SMap) { m.Name = "/dev/hugepages/x" }), "hugetlbfs"},
	} {
		kind, skip, err := vmaKind(c.m)
		switch {
		case c.want == "" && (kind != blob.VMA_ANON || skip || err != nil):
			t.Errorf("%s: %v, %t, %v", name, kind, skip, err)
		case c.want != "" && (!errors.Is(err, errs.ErrUnsupported) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckHugePool(t *testing.T) {
	for _, c := range []struct {
		free, reserved, overcommit, surplus string
		need                                uint64
		want                                string
	}{
		{"7", "0", "0", "0", 7, ""},
		{"7", "1", "0", "0", 7, "needs 7 huge pages of 2 MiB, this host has 6"},
		{"2", "3", "0", "0", 1, "this host has 0"},
		{"7", "1", "3", "2", 7, ""},
		{"0", "0", "3", "4", 1, "this host has 0"},
		{"x", "0", "0", "0", 1, "free_hugepages"},
		{"x", "0", "0", "0", 0, ""},
	} {
		dir := t.TempDir()
		for name, n := range map[string]string{
			"free_hugepages": c.free, "resv_hugepages": c.reserved,
			"nr_overcommit_hugepages": c.overcommit, "surplus_hugepages": c.surplus,
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(n+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := checkHugePool(c.need, dir)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := checkHugePool(1, t.TempDir()); !errors.Is(err, errs.ErrHost) {
		t.Errorf("a kernel without a pool: %v", err)
	}
}

func TestFlatten(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	two := fmt.Errorf("open: %w: %w", a, b) // one error with two causes
	for _, x := range []struct {
		err  error
		want []error
	}{
		{nil, nil},
		{a, []error{a}},
		{errors.Join(a), []error{a}},
		{errors.Join(a, nil, errors.Join(b, c)), []error{a, b, c}},
		{two, []error{two}},
		{errors.Join(two, c), []error{two, c}},
	} {
		if got := flatten(x.err); !slices.Equal(got, x.want) {
			t.Errorf("%v: %q, want %q", x.err, got, x.want)
		}
	}
	wrapped := fmt.Errorf("x: %w", errors.Join(a, b))
	if got := flatten(wrapped); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestWaitExit(t *testing.T) {
	for script, want := range map[string]int{
		"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -KILL $$": 137, "kill -TERM $$": 143,
	} {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if got, err := waitExit(cmd.Process.Pid); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", script, got, err, want)
		}
		_ = cmd.Process.Release() //nolint:errcheck // it has been waited for
	}
	if got, err := waitExit(1 << 30); !errors.Is(err, unix.ECHILD) || got == 0 {
		t.Errorf("nobody's child: %d, %v", got, err)
	}
}

func TestWalkOfOurOwn(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/bin/cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pids, err := family(os.Getpid())
	if err != nil || pids[0] != os.Getpid() || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("%v, %v", pids, err)
	}
	tids, err := threadsOf(os.Getpid())
	if err != nil || tids[0] != os.Getpid() || len(tids) < 2 {
		t.Errorf("%v, %v", tids, err)
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
	if _, err := family(cmd.Process.Pid); !vanished(err) {
		t.Errorf("the dead: %v", err)
	}
	if got := containerPID(&procfs.Status{NSpid: []int{400, 20, 3}}); got != 3 {
		t.Errorf("innermost is %d", got)
	}
	if got := containerPID(&procfs.Status{}); got != 0 {
		t.Errorf("none is %d", got)
	}
}

func TestCheckSum(t *testing.T) {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "a"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := &summer{w: f}
	for _, part := range []string{"one", "", "two"} {
		if _, err := w.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	good := &blob.Tmpfs{Archive: "a", Size: w.size, Crc: w.crc}
	for range 2 { // it goes back to the beginning
		if _, err := f.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		if err := checkSum(f, good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []*blob.Tmpfs{{Size: w.size + 1, Crc: w.crc}, {Size: w.size, Crc: w.crc ^ 1}, {}} {
		if _, err := f.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		if err := checkSum(f, bad); !errors.Is(err, errs.ErrCorrupt) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestContentsWantAFile(t *testing.T) {
	c := &contents{}
	if _, err := c.Write(t.Context(), strings.NewReader("x"), 1); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	reports := make(chan Progress, 1)
	stop := watch(ctx, func(p Progress) {
		select {
		case reports <- p:
		default:
		}
	}, "memory", func() (int64, int64) { return 3, 9 })
	if p := <-reports; p != (Progress{"memory", 3, 9}) {
		t.Errorf("%+v", p)
	}
	stop()
	cancel()
	watch(ctx, nil, "x", nil)()
}
