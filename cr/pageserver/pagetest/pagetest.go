// Package pagetest makes the certificates that page servers and their clients
// show each other in tests.
package pagetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/pageserver"
)

// CA signs certificates for 127.0.0.1 and ::1.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

// New makes a CA.
func New(tb testing.TB) *CA {
	tb.Helper()
	ca := &CA{key: newKey(tb)}
	t := template("a CA", time.Now().Add(time.Hour))
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der := sign(tb, t, t, ca.key, ca.key)
	var err error
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	ca.file = write(tb, tb.TempDir(), "ca.pem", "CERTIFICATE", der)
	return ca
}

// Keys are those of somebody with that name, who trusts the CA; until says how
// long the certificate is good for from now on.
func (ca *CA) Keys(tb testing.TB, name string, until time.Duration) pageserver.Keys {
	tb.Helper()
	key, folder := newKey(tb), tb.TempDir()
	t := template(name, time.Now().Add(until))
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der := sign(tb, t, ca.cert, key, ca.key)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return pageserver.Keys{
		Cert: write(tb, folder, "cert.pem", "CERTIFICATE", der),
		Key:  write(tb, folder, "key.pem", "PRIVATE KEY", private),
		CA:   ca.file,
	}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func template(name string, until time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until,
	}
}

func sign(tb testing.TB, t, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), by)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func write(tb testing.TB, folder, name, kind string, der []byte) string {
	tb.Helper()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}
