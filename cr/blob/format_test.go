package blob

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/errs"
)

var newGolden = flag.String("new-golden", "",
	"write the golden image under this name of testdata; never over an old one")

func written(tb testing.TB, img *Image) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := Write(&b, img); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func readBytes(b []byte) (*Image, error) { return Read(bytes.NewReader(b), int64(len(b))) }

func sameImage(a, b *Image) bool {
	for _, p := range parts() {
		x, y := p.records(a), p.records(b)
		if len(x) != len(y) {
			return false
		}
		for i := range x {
			if !proto.Equal(x[i], y[i]) {
				return false
			}
		}
	}
	return true
}

func TestRoundTrip(t *testing.T) {
	img := sample(t)
	if err := img.Validate(); err != nil {
		t.Fatal(err)
	}
	b := written(t, img)
	if !bytes.Equal(b, written(t, img)) {
		t.Error("writing twice gives different bytes")
	}
	again, err := Read(iotest.OneByteReader(bytes.NewReader(b)), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Validate(); err != nil {
		t.Error(err)
	}
	if !sameImage(img, again) || !bytes.Equal(b, written(t, again)) {
		t.Error("what is read is not what was written")
	}
}

func TestEmptyImage(t *testing.T) {
	img, err := readBytes(written(t, &Image{}))
	if err != nil || !sameImage(img, &Image{}) {
		t.Fatalf("%+v, %v", img, err)
	}
	if err := img.Validate(); !errors.Is(err, errs.ErrCorrupt) {
		t.Errorf("an image of nothing: %v", err)
	}
}

// TestGolden reads images of all versions ever released. They are never made
// anew: a change that can't read them is wrong.
func TestGolden(t *testing.T) {
	if *newGolden != "" {
		f, err := os.OpenFile(filepath.Join("testdata", *newGolden), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(written(t, sample(t))); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob("testdata/v*/*.img")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden images: %v, %v", files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		img, err := readBytes(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := img.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		again := written(t, img)
		if now := fmt.Sprintf("v%d.%d", Major, Minor); filepath.Base(filepath.Dir(name)) == now && !bytes.Equal(b, again) {
			t.Errorf("%s: written again it is different", name)
		}
		if upgraded, err := readBytes(again); err != nil || !sameImage(img, upgraded) {
			t.Errorf("%s: written as the newest version it is another image: %v", name, err)
		}
	}
}

// TestEveryFlip changes each bit pattern of each byte's lowest and highest bit,
// and each byte as a whole: no such file is read.
func TestEveryFlip(t *testing.T) {
	b := written(t, sample(t))
	for i := range b {
		for _, mask := range []byte{1, 0x80, 0xff} {
			b[i] ^= mask
			_, err := readBytes(b)
			b[i] ^= mask
			if !errors.Is(err, errs.ErrCorrupt) && (i >= 8 || !errors.Is(err, errs.ErrNotImage)) {
				t.Fatalf("byte %d with bits %#x flipped: %v", i, mask, err)
			}
		}
	}
}

func TestEveryCut(t *testing.T) {
	b := written(t, sample(t))
	for n := range b {
		_, err := readBytes(b[:n])
		if want := errs.ErrCorrupt; n >= headerSize && !errors.Is(err, want) || n < headerSize && !errors.Is(err,
			errs.ErrNotImage) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
		if _, err := Read(bytes.NewReader(b[:n]), int64(len(b))); !errors.Is(err, errs.ErrCorrupt) {
			t.Fatalf("the first %d bytes, said to be all: %v", n, err)
		}
	}
	for name, f := range map[string]func() (*Image, error){
		"a byte behind": func() (*Image, error) { return readBytes(append(bytes.Clone(b), 0)) },
		"a byte that nobody counts": func() (*Image, error) {
			return Read(bytes.NewReader(append(bytes.Clone(b), 0)),
				int64(len(b)))
		},
	} {
		if _, err := f(); !errors.Is(err, errs.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReaderFails(t *testing.T) {
	b := written(t, sample(t))
	broken := errors.New("disk on fire")
	for _, n := range []int64{0, 10, headerSize, headerSize + 3, int64(len(b) - 1), int64(len(b))} {
		r := io.MultiReader(io.LimitReader(bytes.NewReader(b), n), iotest.ErrReader(broken))
		if _, err := Read(r, int64(len(b))); !errors.Is(err, broken) || errors.Is(err, errs.ErrCorrupt) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

type fullDisk struct{ left int }

func (d *fullDisk) Write(b []byte) (int, error) {
	if d.left -= len(b); d.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

func TestWriterFails(t *testing.T) {
	img := sample(t)
	size := len(written(t, img))
	for _, left := range []int{0, 100, size - 1} {
		if err := Write(&fullDisk{left}, img); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("room for %d bytes: %v", left, err)
		}
	}
	img.Files[3] = nil
	if err := Write(io.Discard, img); err == nil || !strings.Contains(err.Error(), "FILE 3") {
		t.Errorf("a record that is nil: %v", err)
	}
	img.Files[3] = &File{Id: 4, Name: "\xff"}
	if err := Write(io.Discard, img); err == nil {
		t.Error("text that is no UTF-8 was written")
	}
}

// forge makes a file of sections with right checksums.
func forge(sections ...forged) []byte {
	b := appendHeader(nil)
	var sum end
	for _, s := range append(sections, forged{}) {
		if s.tag == "" {
			s = forged{tag: endTag, rev: 1, flags: mustUnderstand, body: sum.append(nil)}
		}
		h := section{s.tag, s.rev, s.flags, uint64(len(s.body)), crc32c(s.body)}.append(nil)
		sum.add(h)
		b = append(append(b, h...), s.body...)
	}
	return b
}

type forged struct {
	tag        string
	rev, flags uint16
	body       []byte
}

func TestForged(t *testing.T) {
	host := encode(t, &Host{Machine: "m", PageSize: 4096})
	mixed := encode(t, &PageStore{Chunks: []*Chunk{{Codec: Chunk_S2}}})
	unordered := encode(t, &PageStore{Chunks: []*Chunk{{Offset: 1}, {Raw: 1}}})
	spread := encode(t, &PageStore{File: "a", More: []*PageFile{{File: "b", Size: 1}}})
	huge := encode(t, &MM{Id: 1, Huge: []*Huge{{Start: 1 << 21, Count: 1}}})
	pool := encode(t, &MM{Id: 1, Vmas: []*VMA{{Start: 1, Flags: uint64(VMAFlag_VMA_HUGETLB)}}})
	for name, tt := range map[string]struct {
		sections []forged
		want     error
	}{
		"good":                 {[]forged{{"HOST", 1, 1, host}}, nil},
		"unknown, optional":    {[]forged{{"HOST", 1, 1, host}, {"WHAT", 9, 0, []byte("x")}, {"CONT", 1, 1, nil}}, nil},
		"unknown, needed":      {[]forged{{"WHAT", 1, 1, nil}}, errs.ErrVersion},
		"unknown flag":         {[]forged{{"HOST", 1, 3, host}}, errs.ErrVersion},
		"newer record":         {[]forged{{"HOST", 2, 1, host}}, errs.ErrVersion},
		"older record":         {[]forged{{"PAGE", 1, 1, encode(t, &PageStore{Chunks: []*Chunk{{Raw: 1}, {Offset: 1}}})}}, nil},
		"older with newer":     {[]forged{{"PAGE", 1, 1, mixed}}, errs.ErrCorrupt},
		"older out of order":   {[]forged{{"PAGE", 1, 1, unordered}}, errs.ErrCorrupt},
		"newer with newer":     {[]forged{{"PAGE", 2, 1, mixed}}, nil},
		"newer out of order":   {[]forged{{"PAGE", 2, 1, unordered}}, nil},
		"older in two files":   {[]forged{{"PAGE", 2, 1, spread}}, errs.ErrCorrupt},
		"newer in two files":   {[]forged{{"PAGE", 3, 1, spread}}, nil},
		"older mm":             {[]forged{{"MEMM", 1, 1, encode(t, &MM{Id: 1})}}, nil},
		"older mm with newer":  {[]forged{{"MEMM", 1, 1, huge}}, errs.ErrCorrupt},
		"older mm, newer flag": {[]forged{{"MEMM", 1, 1, pool}}, errs.ErrCorrupt},
		"newer mm with newer":  {[]forged{{"MEMM", 2, 1, huge}, {"MEMM", 2, 1, pool}}, nil},
		"revision 0":           {[]forged{{"MEMM", 0, 1, nil}}, errs.ErrVersion},
		"known but optional":   {[]forged{{"HOST", 1, 0, host}}, errs.ErrCorrupt},
		"twice":                {[]forged{{"HOST", 1, 1, host}, {"HOST", 1, 1, host}}, errs.ErrCorrupt},
		"out of order":         {[]forged{{"CONT", 1, 1, nil}, {"HOST", 1, 1, host}}, errs.ErrCorrupt},
		"no message":           {[]forged{{"HOST", 1, 1, []byte{0xff}}}, errs.ErrCorrupt},
		"unknown field":        {[]forged{{"HOST", 1, 1, append(bytes.Clone(host), 0xf8, 0x7f, 1)}}, errs.ErrCorrupt},
		"default written out":  {[]forged{{"HOST", 1, 1, append(bytes.Clone(host), 0x50, 0)}}, errs.ErrCorrupt},
		"field twice":          {[]forged{{"HOST", 1, 1, append(bytes.Clone(host), host...)}}, errs.ErrCorrupt},
		"field of wrong type":  {[]forged{{"HOST", 1, 1, []byte{0x0a ^ 2, 1}}}, errs.ErrCorrupt},
		"no UTF-8":             {[]forged{{"HOST", 1, 1, []byte{0x0a, 1, 0xff}}}, errs.ErrCorrupt},
		"empty records":        {[]forged{{"PROC", 1, 1, bytes.Repeat([]byte{0xaa, 1, 0}, 1000)}}, errs.ErrCorrupt},
		"end too early":        {[]forged{{endTag, 1, 1, make([]byte, 8)}}, errs.ErrCorrupt},
		"end of another size":  {[]forged{{endTag, 1, 1, make([]byte, 9)}}, errs.ErrCorrupt},
		"end of another rev":   {[]forged{{endTag, 2, 1, make([]byte, 8)}}, errs.ErrCorrupt},
		"section is missing":   {[]forged{{"HOST", 1, 1, host}, {endTag, 1, 1, end{}.append(nil)}}, errs.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := readBytes(forge(tt.sections...)); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

func TestForgedHeader(t *testing.T) {
	for name, tt := range map[string]struct {
		at, with byte
		want     error
	}{
		"major": {8, 2, errs.ErrVersion}, "minor": {10, 7, nil}, "feature": {12, 1, errs.ErrVersion},
		"architecture": {16, 183, errs.ErrVersion}, "reserved": {27, 1, errs.ErrVersion}, "magic": {
			7, '\r',
			errs.ErrNotImage,
		},
	} {
		b := written(t, sample(t))
		b[tt.at] = tt.with
		binary.LittleEndian.PutUint32(b[28:], crc32c(b[:28]))
		if _, err := readBytes(b); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if _, err := readBytes([]byte("\x7fELF and so on, for more than thirty-two bytes")); !errors.Is(err,
		errs.ErrNotImage) {
		t.Errorf("another kind of file: %v", err)
	}
}

// TestPromises checks that memory follows what is there, not what is promised.
func TestPromises(t *testing.T) {
	b := appendHeader(nil)
	b = section{"HOST", 1, 1, maxBody, 0}.append(b)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, size := range []int64{int64(len(b)), maxState, maxState + 1, 1 << 62, -1} {
		if _, err := Read(bytes.NewReader(b), size); err == nil {
			t.Errorf("size %d: read", size)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes allocated for a file of %d", n, len(b))
	}
}

// FuzzRead reads sections behind right checksums: the fuzzer would not get them
// right by itself.
func FuzzRead(f *testing.F) {
	for _, p := range parts() {
		for _, m := range p.records(sample(f)) {
			for rev := range p.rev {
				f.Add(p.tag, rev+1, uint16(mustUnderstand), encode(f, m))
			}
		}
	}
	good := written(f, sample(f))
	f.Fuzz(func(t *testing.T, tag string, rev, flags uint16, body []byte) {
		if len(tag) != 4 {
			tag = "HOST"
		}
		check(t, forge(forged{tag, rev, flags, body}))
		check(t, insert(good, forged{tag, rev, flags, body}))
		check(t, body)
	})
}

// insert puts a section in the place of the first one of its tag.
func insert(file []byte, s forged) []byte {
	all := sections(file)
	if i := slices.IndexFunc(all, func(f forged) bool { return f.tag == s.tag }); i >= 0 {
		all[i] = s
	}
	return forge(all...)
}

// newest gives all sections that this version knows its own revisions. It is for
// files that can be read.
func newest(file []byte) []byte {
	all := sections(file)
	for i := range all {
		for _, p := range parts() {
			if p.tag == all[i].tag {
				all[i].rev = p.rev
			}
		}
	}
	return forge(all...)
}

// sections takes a file apart.
func sections(file []byte) (all []forged) {
	for at := headerSize; at < len(file); {
		h, err := parseSection(file[at : at+sectionHeaderSize])
		if err != nil || h.tag == endTag {
			break
		}
		at += sectionHeaderSize
		all = append(all, forged{h.tag, h.rev, h.flags, file[at : at+int(h.length)]})
		at += int(h.length)
	}
	return all
}

// check reads a file that may be anything. One that is read is written in the
// same way, but for sections that the reader skipped, and with the newest
// revisions.
func check(t *testing.T, b []byte) {
	t.Helper()
	img, err := readBytes(b)
	if err != nil {
		if !errors.Is(err, errs.ErrCorrupt) && !errors.Is(err, errs.ErrVersion) && !errors.Is(err, errs.ErrNotImage) {
			t.Fatalf("error without a class: %v", err)
		}
		return
	}
	if err := img.Validate(); err != nil && !errors.Is(err, errs.ErrCorrupt) && !errors.Is(err, errs.ErrVersion) {
		t.Fatalf("error without a class: %v", err)
	}
	again := written(t, img)
	b = newest(b)
	if len(again) == len(b) && !bytes.Equal(again, b) || len(again) > len(b) {
		t.Fatalf("written again it is different:\n%x\n%x", b, again)
	}
}

// TestDocumented keeps the tables of the format's document whole.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts() {
		if !bytes.Contains(doc, []byte("| `"+p.tag+"` |")) {
			t.Errorf("section %s is not in FORMAT.md", p.tag)
		}
	}
	for _, f := range sampleFiles(t) {
		if f.Body != nil && !bytes.Contains(doc, []byte("`"+f.Kind+"`")) {
			t.Errorf("kind %s is not in FORMAT.md", f.Kind)
		}
	}
}
