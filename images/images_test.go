package images_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/images"
)

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFinish(t *testing.T) {
	path := t.TempDir()
	if err := images.Finish(path); !errors.Is(err, errs.ErrNotImage) {
		t.Errorf("empty directory: %v", err)
	}
	dirtest.Write(t, path)
	for range 2 {
		if err := images.Finish(path); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	if err := json.Unmarshal(read(t, path, "descriptors.json"), &got); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/dev/null", "pipe:[11]", "pipe:[12]"}; !slices.Equal(got, want) {
		t.Errorf("descriptors %q, want %q", got, want)
	}
	if len(read(t, path, "inventory.img")) == 0 {
		t.Error("inventory.img is empty")
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v (%v), want a regular file of 0600", e.Name(), info.Mode(), err)
		}
	}
	if _, err := images.Open(path); err != nil {
		t.Error(err)
	}
}

// TestStats reads the file as podman does: two magic numbers, a length, and a
// message whose required fields must all be there.
func TestStats(t *testing.T) {
	path := t.TempDir()
	s := images.DumpStats{Frozen: 1500 * time.Microsecond, Total: 2 * time.Hour, Pages: 42}
	if err := images.WriteStats(path, s); err != nil {
		t.Fatal(err)
	}
	b := read(t, path, "stats-dump")
	for i, want := range []uint32{0x55105940, 0x57093306, uint32(len(b) - 12)} {
		if got := binary.LittleEndian.Uint32(b[4*i:]); got != want {
			t.Errorf("word %d is %#x, want %#x", i, got, want)
		}
	}
	num, typ, n := protowire.ConsumeTag(b[12:])
	dump, m := protowire.ConsumeBytes(b[12+n:])
	if num != 1 || typ != protowire.BytesType || m < 0 {
		t.Fatalf("entry: field %d, type %d, length %d", num, typ, m)
	}
	got := map[protowire.Number]uint64{}
	for len(dump) > 0 {
		num, typ, n := protowire.ConsumeTag(dump)
		v, m := protowire.ConsumeVarint(dump[max(n, 0):])
		if n < 0 || m < 0 || typ != protowire.VarintType {
			t.Fatalf("field %d, type %d: %x", num, typ, dump)
		}
		got[num], dump = v, dump[n+m:]
	}
	want := map[protowire.Number]uint64{1: 0, 2: 1500, 3: 0, 4: 1<<32 - 1, 5: 42, 6: 0, 7: 42, 9: 0}
	for num, v := range want {
		if g, ok := got[num]; !ok || g != v {
			t.Errorf("field %d is %d (there: %v), want %d", num, g, ok, v)
		}
	}
}

func TestFormats(t *testing.T) {
	r := slog.NewRecord(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), slog.LevelWarn, "two\nlines \"q\"", 0)
	attrs := []slog.Attr{slog.Int("pid", 7), slog.String("path", "a b")}
	if got, want := string(images.Text(r, attrs)),
		`time="2026-01-02T03:04:05Z" level=warning msg="two; lines \"q\"" pid=7 path="a b"`; got != want {
		t.Errorf("text\n%s, want\n%s", got, want)
	}
	const object = `{"level":"warning","msg":"two; lines \"q\"","path":"a b","pid":"7","time":"2026-01-02T03:04:05Z"}`
	if got, want := string(images.JSON(r, attrs)), object; got != want {
		t.Errorf("json\n%s, want\n%s", got, want)
	}
}

func TestHandler(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(images.NewHandler(&b, slog.LevelInfo, images.JSON))
	log.Debug("no")
	log.With(slog.Int("a", 1)).WithGroup("g").With(slog.Int("b", 2)).Error("yes", slog.Int("c", 3))
	var got map[string]string
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, b.String())
	}
	for k, want := range map[string]string{"msg": "yes", "level": "error", "a": "1", "g.b": "2", "g.c": "3"} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
}

// TestOpenLog checks that what waits under the log's name is neither followed
// nor waited for.
func TestOpenLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "work")
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(path, "dump.log")
	for _, plant := range []func() error{
		func() error { return nil },
		func() error { return os.Symlink(victim, name) },
		func() error { return syscall.Mkfifo(name, 0o600) },
	} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := plant(); err != nil {
			t.Fatal(err)
		}
		h, c, err := images.OpenLog(path, "dump.log")
		if err != nil {
			t.Fatal(err)
		}
		slog.New(h).Debug("step", slog.Int("n", 1))
		slog.New(h).Error("it broke")
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		lines := strings.Split(strings.TrimSpace(string(read(t, name))), "\n")
		if len(lines) != 2 || !strings.HasSuffix(lines[0], "step n=1") ||
			!strings.HasSuffix(lines[1], "Error (stasis): it broke") {
			t.Errorf("log: %q", lines)
		}
	}
	if got := string(read(t, victim)); got != "precious" {
		t.Errorf("the log went through a link: %q", got)
	}
}
