package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
)

// A Format makes one line, without its end, of a record and its attributes.
type Format func(r slog.Record, attrs []slog.Attr) []byte

// A Handler writes log records as lines, each in one write.
type Handler struct {
	format Format
	level  slog.Level
	attrs  []slog.Attr
	prefix string // groups, each with a dot behind

	out *output
}

type output struct {
	mu sync.Mutex
	w  io.Writer
}

// NewHandler writes records of at least level to w.
func NewHandler(w io.Writer, level slog.Level, format Format) *Handler {
	return &Handler{format: format, level: level, out: &output{w: w}}
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// Handle implements slog.Handler.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	attrs := slices.Clip(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, h.named(a))
		return true
	})
	line := append(h.format(r, attrs), '\n')
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	_, err := h.out.w.Write(line)
	return err
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = slices.Clip(c.attrs)
	for _, a := range attrs {
		c.attrs = append(c.attrs, h.named(a))
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	c := *h
	c.prefix += name + "."
	return &c
}

func (h *Handler) named(a slog.Attr) slog.Attr {
	return slog.Attr{Key: h.prefix + a.Key, Value: a.Value.Resolve()}
}

// JSON is the format that containerd reads: an object with level, msg and time.
func JSON(r slog.Record, attrs []slog.Attr) []byte {
	m := make(map[string]any, 3+len(attrs))
	for _, a := range attrs {
		m[a.Key] = a.Value.String()
	}
	m["level"], m["msg"], m["time"] = levelName(r.Level), oneLine(r.Message), r.Time.Format(time.RFC3339)
	b, err := json.Marshal(m)
	if err != nil { // strings alone: can't be
		return []byte(strconv.Quote(err.Error()))
	}
	return b
}

// Text is the format of runc's logs for people: time, level and msg.
func Text(r slog.Record, attrs []slog.Attr) []byte {
	when := r.Time.Format(time.RFC3339)
	return appendAttrs(fmt.Appendf(nil, "time=%q level=%s msg=%q", when, levelName(r.Level), oneLine(r.Message)), attrs)
}

// since is the format of CRIU's logs: the seconds since the start in front.
func since(start time.Time) Format {
	return func(r slog.Record, attrs []slog.Attr) []byte {
		b := fmt.Appendf(nil, "(%09.6f) ", r.Time.Sub(start).Seconds())
		if r.Level >= slog.LevelError {
			b = append(b, "Error (stasis): "...)
		} else if r.Level >= slog.LevelWarn {
			b = append(b, "Warn  (stasis): "...)
		}
		return appendAttrs(append(b, oneLine(r.Message)...), attrs)
	}
}

func appendAttrs(b []byte, attrs []slog.Attr) []byte {
	for _, a := range attrs {
		v := a.Value.String()
		if strings.ContainsAny(v, " \"\n\t=") || v == "" {
			v = strconv.Quote(v)
		}
		b = append(append(append(append(b, ' '), a.Key...), '='), v...)
	}
	return b
}

// levelName spells levels as runc does.
func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warning"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}

func oneLine(s string) string { return errs.OneLine(errors.New(s)) }

// OpenLog begins the log name in the directory path, making it (mode 0700) if
// need be, and returns what closes it. A log of the same name is replaced: the
// file is always a new one, so no link or FIFO that waits under the name is
// followed.
func OpenLog(path, name string) (*Handler, io.Closer, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, nil, fmt.Errorf("work directory: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, nil, fmt.Errorf("work directory: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing was written through it
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("work directory: %w", err)
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, fileMode)
	if err != nil {
		return nil, nil, fmt.Errorf("work directory: %w", err)
	}
	return NewHandler(f, slog.LevelDebug, since(time.Now())), f, nil
}

// AppendLog opens a log that OpenLog began, to go on in it. The file is closed
// with the process.
func AppendLog(path, name string) (*Handler, error) {
	f, err := os.OpenFile(filepath.Join(path, name), os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("log %s is no regular file", f.Name()), err, f.Close())
	}
	return NewHandler(f, slog.LevelDebug, since(time.Now())), nil
}
