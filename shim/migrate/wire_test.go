package migrate

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// pair is a connection with both ends here.
func pair(t *testing.T) (a, b *wire) {
	t.Helper()
	x, y := net.Pipe()
	a, b = newWire(x), newWire(y)
	t.Cleanup(func() {
		_ = a.close() //nolint:errcheck // it may be closed
		_ = b.close() //nolint:errcheck // likewise
	})
	return a, b
}

// both runs the two ends of a conversation.
func both(t *testing.T, one, other func() error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- one() }()
	if err := errors.Join(other(), <-ended); err != nil {
		t.Fatal(err)
	}
}

func TestMessages(t *testing.T) {
	a, b := pair(t)
	want := message{Kind: kindRound, Round: 3, Addr: "[::1]:5", State: []byte{1, 2}, Took: time.Second}
	both(t, func() error { return a.send(want) }, func() error {
		got, err := b.want(kindRound)
		if got.Addr != want.Addr || got.Round != 3 || !bytes.Equal(got.State, want.State) || got.Took != time.Second {
			t.Errorf("%+v", got)
		}
		return err
	})
	both(t, func() error { return a.send(want) }, func() error {
		if _, err := b.want(kindGo); !errors.Is(err, errProtocol) {
			t.Errorf("another message is taken: %v", err)
		}
		return nil
	})
	long := strings.Repeat("x", 2*mostText)
	both(t, func() error { return a.refuse(errors.New(long)) }, func() error {
		_, err := b.recv()
		if r := new(refusal); !errors.As(err, &r) || len(r.text) != mostText {
			t.Errorf("%v", err)
		}
		return nil
	})
}

func TestStreams(t *testing.T) {
	for _, n := range []int{0, 1, mostData - 1, mostData, mostData + 1, 3*mostData + 7} {
		a, b := pair(t)
		want := bytes.Repeat([]byte("stasis "), n/7+1)[:n]
		both(t, func() error {
			err := a.stream(message{Kind: kindRootfs}, func(w io.Writer) error {
				_, err := w.Write(want)
				return err
			})
			return errors.Join(err, a.send(message{Kind: kindDone}))
		}, func() error {
			if _, err := b.want(kindRootfs); err != nil {
				return err
			}
			err := b.receive(func(r io.Reader) error {
				got, err := io.ReadAll(io.LimitReader(r, int64(n/2))) // what is left is passed over
				if !bytes.Equal(got, want[:n/2]) {
					t.Errorf("%d bytes: %d came, or others", n, len(got))
				}
				return err
			})
			if err != nil {
				return err
			}
			_, err = b.want(kindDone)
			return err
		})
	}
}

// TestLost: whatever breaks off is a lost connection, which is asked about again;
// what the other side has said before counts more.
func TestLost(t *testing.T) {
	a, b := pair(t)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.recv(); !errors.Is(err, errLost) {
		t.Errorf("receive: %v", err)
	}
	if err := b.send(message{Kind: kindGo}); !errors.Is(err, errLost) {
		t.Errorf("send: %v", err)
	}
	if err := b.receive(func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }); !errors.Is(err, errLost) {
		t.Errorf("stream: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was written
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := watchful(y); err != nil {
		t.Error(err)
	}
	a, b = newWire(x), newWire(y)
	if err := b.refuse(errors.New("no room")); err != nil {
		t.Fatal(err)
	}
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	err = a.stream(message{Kind: kindImage}, func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, mostData)); err != nil {
				return err
			}
		}
	})
	if err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("%v", err)
	}
	_ = a.close() //nolint:errcheck // the other end is closed
}

// raw is one end of a connection from which certain bytes come.
type raw struct {
	net.Conn
	*bytes.Reader
}

func (r raw) Read(b []byte) (int, error) { return r.Reader.Read(b) }

func TestHostileFrames(t *testing.T) {
	for name, b := range map[string]string{
		"of no kind":       "X\x00\x00\x00\x01\x00\x00\x00a",
		"with other bits":  "M\x00\x01\x00\x02\x00\x00\x00{}",
		"empty":            "M\x00\x00\x00\x00\x00\x00\x00",
		"too long":         "M\x00\x00\x00\xff\xff\xff\x7f",
		"end with content": "E\x00\x00\x00\x01\x00\x00\x00a",
		"data for message": "D\x00\x00\x00\x01\x00\x00\x00a",
		"no JSON":          "M\x00\x00\x00\x01\x00\x00\x00{",
	} {
		w := newWire(raw{Reader: bytes.NewReader([]byte(b))})
		if _, err := w.recv(); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRecv(f *testing.F) {
	f.Add([]byte("M\x00\x00\x00\x02\x00\x00\x00{}D\x00\x00\x00\x01\x00\x00\x00aE\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWire(raw{Reader: bytes.NewReader(b)})
		for {
			if _, err := w.recv(); err != nil {
				break
			}
		}
		w = newWire(raw{Reader: bytes.NewReader(b)})
		var out bytes.Buffer
		_ = w.receive(func(r io.Reader) error { _, err := io.Copy(&out, r); return err }) //nolint:errcheck // it must come back
		if out.Len() > len(b) {
			t.Errorf("%d bytes became %d", len(b), out.Len())
		}
	})
}
