package mem

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"sync"
)

// The table of pages that a store has seen: so many sets of so many places. Its
// size is fixed, 6 MiB for the last 2^18 different pages (1 GiB), give or take
// what falls into the same set.
const (
	twinSets = 1 << 16
	twinWays = 4
)

// digest is a page's, by GMAC under a key that only this store knows.
type digest [16]byte

// place is where a page is stored.
type place struct{ chunk, page uint32 }

// seen is one page of the table; none if its digest is zero.
type seen struct {
	sum digest
	at  place
}

// twins finds pages that have been stored before. docs/adr/0005-page-store.md
// says why equal digests mean equal pages.
type twins struct {
	mac   cipher.AEAD
	nonce []byte

	mu   sync.Mutex
	sets [][twinWays]seen // made when first needed
}

// newTwins makes an empty table with a key of its own.
func newTwins() (*twins, error) {
	key := make([]byte, 16)
	rand.Read(key) //nolint:errcheck // it never fails
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("digest of pages: %w", err)
	}
	mac, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("digest of pages: %w", err)
	}
	return &twins{mac: mac, nonce: make([]byte, mac.NonceSize())}, nil
}

// sum is the digest of a page: the tag of a message without text whose
// additional data is the page. The nonce may be the same for all, as no tag
// leaves the process.
func (t *twins) sum(page []byte) (d digest) {
	t.mac.Seal(d[:0], t.nonce, nil, page)
	return d
}

// find looks every page of raw up, and fills in where the ones are stored that
// have been seen before; the others it remembers as those of a chunk whose index
// reserve gives out. skip says which pages to leave out.
func (t *twins) find() {}
