package lazy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/pageserver"
)

// Plan is what a server needs to know and that does not change: the page store,
// and for each address space what is to come. It lies in sealed memory that
// server and guard share.
type Plan struct {
	Store  *blob.PageStore
	Image  int64             // when the container was frozen: tells images of one directory apart
	LogDir string            // where restore.log is
	Remote pageserver.Remote // who has the page stores that we have not; without an address we have all
	Spaces []PlanSpace
}

// PlanSpace is one address space.
type PlanSpace struct {
	PID     int32   // in the container; 0: it was born since
	Gone    bool    // its userfaultfd is given up
	Pieces  []Piece // what is to come
	Watched []Piece // all that is watched; chunk and page mean nothing
}

const (
	planMagic = 0x316e616c_707a616c
	pieceSize = 24
)

var (
	le          = binary.LittleEndian
	errBadPlan  = errors.New("plan is damaged")
	planSeals   = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	planMaximum = int64(1) << 34
)

// Append encodes the plan:
//
//	u64 magic, i64 image, u32 and the bytes of log directory and page store,
//	remote: u32 and the bytes of address, certificate, key, CA and digest, i64 patience in ns;
//	u32 number of spaces; each space: i32 pid, u32 gone, pieces, watched;
//	each list: u64 number; each piece: u64 start, u64 end, u32 chunk, u32 page
func (p *Plan) Append(b []byte) ([]byte, error) {
	store, err := proto.Marshal(p.Store)
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	b = le.AppendUint64(b, planMagic)
	b = le.AppendUint64(b, uint64(p.Image))
	r := &p.Remote
	for _, x := range []string{p.LogDir, string(store), r.Addr, r.Cert, r.Key, r.CA, string(r.State)} {
		b = append(le.AppendUint32(b, uint32(len(x))), x...)
	}
	b = le.AppendUint64(b, uint64(r.Patience))
	b = le.AppendUint32(b, uint32(len(p.Spaces)))
	for _, s := range p.Spaces {
		gone := uint32(0)
		if s.Gone {
			gone = 1
		}
		b = le.AppendUint32(le.AppendUint32(b, uint32(s.PID)), gone)
		b = appendPieces(appendPieces(b, s.Pieces), s.Watched)
	}
	return b, nil
}

func appendPieces(b []byte, list []Piece) []byte {
	b = le.AppendUint64(b, uint64(len(list)))
	for _, x := range list {
		b = le.AppendUint64(le.AppendUint64(b, x.Start), x.End)
		b = le.AppendUint32(le.AppendUint32(b, x.Chunk), x.Page)
	}
	return b
}

// DecodePlan reads what Append wrote.
func DecodePlan(b []byte) (*Plan, error) {
	r := &reader{b: b}
	if r.u64() != planMagic {
		return nil, errBadPlan
	}
	p := &Plan{Store: &blob.PageStore{}, Image: int64(r.u64())}
	p.LogDir = r.text()
	if err := proto.Unmarshal(r.bytes(uint64(r.u32())), p.Store); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadPlan, err)
	}
	p.Remote.Addr, p.Remote.Cert, p.Remote.Key, p.Remote.CA = r.text(), r.text(), r.text(), r.text()
	p.Remote.State, p.Remote.Patience = []byte(r.text()), time.Duration(r.u64())
	for n := r.u32(); n > 0 && !r.bad; n-- {
		p.Spaces = append(p.Spaces, PlanSpace{int32(r.u32()), r.u32() == 1, r.pieces(), r.pieces()})
	}
	if r.bad || len(r.b) > 0 {
		return nil, errBadPlan
	}
	return p, nil
}

// reader takes numbers from the front of b. What is not there is bad, and 0.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) text() string { return string(r.bytes(uint64(r.u32()))) }

func (r *reader) u32() uint32 {
	if b := r.bytes(4); b != nil {
		return le.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.bytes(8); b != nil {
		return le.Uint64(b)
	}
	return 0
}

func (r *reader) pieces() []Piece {
	n := r.u64()
	if n > uint64(len(r.b)/pieceSize) {
		r.bad = true
		return nil
	}
	list := make([]Piece, n)
	for i := range list {
		list[i] = Piece{r.u64(), r.u64(), r.u32(), r.u32()}
	}
	return list
}

// file puts the plan into memory that nobody can change any more.
func (p *Plan) file() (_ *os.File, err error) {
	b, err := p.Append(nil)
	if err != nil {
		return nil, err
	}
	f, err := memfd("stasis-lazy-plan")
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(b); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, planSeals)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("plan: %w", err), f.Close())
	}
	return f, nil
}

func readPlan(f *os.File) (*Plan, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if st.Size() > planMaximum {
		return nil, errBadPlan
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, st.Size()), b); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	return DecodePlan(b)
}

func memfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
