package main

import (
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
)

// maps prints the mappings of every address space, once each.
func (v *view) maps(w io.Writer) {
	fmt.Fprintln(w, "PID\tADDRESS\tPROT\tKIND\tSIZE\tSAVED\tMAPPING")
	owner := map[uint32]int32{}
	v.walk(func(p *blob.Process, _ int) {
		mm := v.mms[p.GetMm()]
		if mm == nil {
			return
		}
		if first, ok := owner[mm.GetId()]; ok {
			fmt.Fprintf(w, "%d\tall\t\t\t\t\tshared with pid %d\n", p.GetPid(), first)
			return
		}
		owner[mm.GetId()] = p.GetPid()
		perVMA(mm, func(m *blob.VMA, bytes uint64) {
			length := m.GetEnd() - m.GetStart()
			fmt.Fprintf(w, "%d\t%x-%x\t%s\t%s\t%s\t%s\t%s\n", p.GetPid(), m.GetStart(), m.GetEnd(), prot(m),
				strings.ToLower(m.GetKind().String()), size(length), size(bytes), printable(m.GetName()))
		})
	})
}

// perVMA visits each mapping with the bytes of it that were saved. Both lists
// ascend, and an extent may cover neighbours.
func perVMA(mm *blob.MM, visit func(m *blob.VMA, bytes uint64)) {
	extents := mm.GetExtents()
	for _, m := range mm.GetVmas() {
		var bytes uint64
		for len(extents) > 0 {
			start := extents[0].GetStart()
			end := start + uint64(extents[0].GetPages())*pageSize
			if from, to := max(start, m.GetStart()), min(end, m.GetEnd()); from < to {
				bytes += to - from
			}
			if end > m.GetEnd() {
				break
			}
			extents = extents[1:]
		}
		visit(m, bytes)
	}
}

// prot is the protection in the letters of /proc/pid/maps.
func prot(m *blob.VMA) string {
	b := []byte("---p")
	for i, f := range []uint32{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		if m.GetProt()&f != 0 {
			b[i] = "rwx"[i]
		}
	}
	if m.GetShared() {
		b[3] = 's'
	}
	return string(b)
}
