package mem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
)

const helperEnv = "STASIS_MEM_HELPER"

// TestMain lets the test binary be the process whose memory is saved.
func TestMain(m *testing.M) {
	if os.Getenv(writerEnv) != "" {
		fmt.Fprintln(os.Stderr, writeForever())
		os.Exit(1)
	}
	dir := os.Getenv(helperEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := help(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// place is a mapping of a helper.
type place struct {
	Start, End uint64
	File       bool
}

// helper is a process with mappings that are known.
type helper struct {
	PID, Child int // Child was forked from it
	Places     map[string]place
}

// sizes of the helper's mappings, in pages.
const (
	randomPages = 3*chunkPages + 5
	mixedPages  = 300
	smallPages  = 16
)

// help maps, reports and waits for the end of its input.
func help(dir string) error {
	h := helper{PID: os.Getpid(), Places: map[string]place{}}
	anon := func(name string, pages int) ([]byte, error) {
		b, err := unix.Mmap(-1, 0, pages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err == nil {
			h.note(name, b, false)
			err = unix.Madvise(b, unix.MADV_NOHUGEPAGE)
		}
		return b, err
	}
	var random []byte
	for _, name := range []string{"random", "mixed", "none", "readonly", "untouched", "zero", "target", "closed"} {
		pages := map[string]int{"random": randomPages, "mixed": mixedPages, "target": randomPages}[name]
		b, err := anon(name, max(pages, smallPages))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := prepare(name, b); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if name == "random" {
			random = b
		}
	}
	if err := h.mapFile(dir); err != nil {
		return err
	}
	if err := h.fork(random); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(h); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, h.reap())
}

// reap ends the child and its trace: not every init waits for orphans.
func (h *helper) reap() error {
	if err := unix.Kill(h.Child, unix.SIGKILL); err != nil {
		return err
	}
	_, err := unix.Wait4(h.Child, nil, 0, nil)
	return err
}

func (h *helper) note(name string, b []byte, file bool) {
	at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	h.Places[name] = place{at, at + uint64(len(b)), file}
}

// prepare gives a mapping its pages.
func prepare(name string, b []byte) error {
	switch name {
	case "random":
		copy(b, noise(1, len(b)))
	case "mixed": // every third page has something, every third is touched, the rest is not
		for p := 0; p < len(b)/PageSize; p++ {
			switch p % 3 {
			case 0:
				copy(b[p*PageSize:], noise(uint64(p), PageSize))
			case 1:
				b[p*PageSize] = 0
			}
		}
	case "none":
		copy(b, noise(2, len(b)))
		return unix.Mprotect(b, unix.PROT_NONE)
	case "readonly":
		copy(b, noise(3, len(b)))
		return unix.Mprotect(b, unix.PROT_READ)
	case "zero":
		sum := byte(0)
		for p := 0; p < len(b); p += PageSize {
			sum += b[p] // maps the shared zero page
		}
		if sum != 0 {
			return unix.EIO
		}
	case "closed":
		return unix.Mprotect(b, unix.PROT_READ)
	}
	return nil
}

// copied are the pages of the file mapping that were copied on write; the last
// was written with zeros.
func copied() []int { return []int{2, 3, 7, 11} }

func (h *helper) mapFile(dir string) error {
	path := filepath.Join(dir, "mapped")
	if err := os.WriteFile(path, noise(4, smallPages*PageSize), 0o600); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, smallPages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	sum := 0
	for p := 0; p < len(b); p += PageSize {
		sum += int(b[p])
	}
	for i, p := range copied() {
		page := b[p*PageSize : (p+1)*PageSize]
		if i == len(copied())-1 {
			clear(page)
			continue
		}
		page[sum%PageSize]++
	}
	h.note("file", b, true)
	return nil
}

// fork leaves a child that shares all pages but two, which it has written. It
// makes only raw calls: the runtime has no threads there.
func (h *helper) fork(random []byte) error {
	first, far := &random[0], &random[(chunkPages+1)*PageSize]
	pid, _, e := syscall.RawSyscall(unix.SYS_FORK, 0, 0, 0)
	if e != 0 {
		return fmt.Errorf("fork: %w", e)
	}
	if pid != 0 {
		h.Child = int(pid)
		return nil
	}
	_, _, _ = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0)
	*first ^= 0xff
	*far ^= 0xff
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
	}
}

// startHelper starts a helper that ends with the test.
func startHelper(t *testing.T) *helper {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Not the test's own context: that kills it before it can reap its child.
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), self)
	cmd.Env = append(os.Environ(), helperEnv+"="+t.TempDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &helper{}
	t.Cleanup(func() {
		_ = in.Close() //nolint:errcheck // that ends it
		_ = cmd.Wait() //nolint:errcheck // ended or killed
	})
	if err := json.NewDecoder(out).Decode(h); err != nil {
		t.Fatalf("helper: %v", err)
	}
	return h
}

// mm is the address space with the places that are named.
func (h *helper) mm(names ...string) *blob.MM {
	mm := &blob.MM{}
	for _, n := range names {
		p := h.Places[n]
		v := &blob.VMA{Start: p.Start, End: p.End}
		if p.File {
			v.Kind = blob.VMA_FILE
		}
		mm.Vmas = append(mm.Vmas, v)
	}
	return mm
}

// peek reads memory of a process from outside, whatever its protection.
func peek(t *testing.T, pid int, p place) []byte {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, p.End-p.Start)
	if _, err := f.ReadAt(b, int64(p.Start)); err != nil {
		t.Fatal(err)
	}
	return b
}
