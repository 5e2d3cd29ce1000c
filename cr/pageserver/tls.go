package pageserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
)

// Keys are the files, in PEM, by which both sides know each other.
type Keys struct {
	Cert string // our certificate, and those between it and the CA's
	Key  string // its key
	CA   string // who signs the other side's certificate
}

// load reads the files: at each connection, so that a new certificate counts.
func (k Keys) load() (*tls.Config, *x509.CertPool, error) {
	cert, err := tls.LoadX509KeyPair(k.Cert, k.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s with key %s: %w", k.Cert, k.Key, err)
	}
	pem, err := os.ReadFile(k.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("CA %s: no certificate in it", k.CA)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, pool, nil
}

// Server is how a server speaks: to clients only whose certificate CA has signed.
func (k Keys) Server() (*tls.Config, error) {
	c, pool, err := k.load()
	if err != nil {
		return nil, err
	}
	c.ClientCAs, c.ClientAuth = pool, tls.RequireAndVerifyClientCert
	c.SessionTicketsDisabled = true // a certificate is looked at each time
	return c, nil
}

// Client is how a client speaks: to a server only whose certificate CA has signed,
// for host.
func (k Keys) Client(host string) (*tls.Config, error) {
	c, pool, err := k.load()
	if err != nil {
		return nil, err
	}
	c.RootCAs, c.ServerName = pool, host
	return c, nil
}

// refusals are the alerts by which the other side says that it does not want us,
// whenever we come again (RFC 8446, 6.2).
var refusals = []tls.AlertError{
	40,                     // handshake_failure
	42, 43, 44, 45, 46, 48, // about our certificate
	49,  // access_denied
	70,  // protocol_version
	116, // certificate_required
}

// Refused says whether err means that the sides will not come to trust each other.
func Refused(err error) bool {
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	_, stranger := errors.AsType[tls.RecordHeaderError](err)
	if untrusted || stranger {
		return true
	}
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return false
	}
	return slices.ContainsFunc(refusals, func(a tls.AlertError) bool { return a.Error() == op.Err.Error() })
}
