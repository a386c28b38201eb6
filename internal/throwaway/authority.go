package throwaway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

const (
	certFile = "server.crt"
	keyFile  = "server.key"
	caFile   = "ca.crt"

	certLife = 24 * time.Hour
)

// Authority is a certificate authority that only the clients which it configures trust. Its own key
// never leaves the process.
type Authority struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	client tls.Certificate
}

// NewAuthority makes an authority. Certificates are valid for a day, for 127.0.0.1 and localhost.
func NewAuthority() (*Authority, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "throwaway authority"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	a := &Authority{}
	var err error
	if a.cert, a.key, err = a.sign(template); err != nil {
		return nil, err
	}
	cert, key, err := a.issue("throwaway client", x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	a.client = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	return a, nil
}

// ClientConfig returns the TLS configuration for a client of a server with a certificate of this
// authority. It has a client certificate for servers that ask for one.
func (a *Authority) ClientConfig() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		RootCAs:      roots,
		ServerName:   "127.0.0.1",
		Certificates: []tls.Certificate{a.client},
	}
}

// PEM returns the authority's certificate, for clients that are not written in Go.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// serverFiles returns a new server certificate, its key and the authority's certificate, in PEM.
func (a *Authority) serverFiles() (map[string][]byte, error) {
	// A server of a cluster, or a replica, is a client of the others.
	cert, key, err := a.issue("throwaway server", x509.ExtKeyUsageServerAuth,
		x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	encode := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	return map[string][]byte{
		certFile: encode("CERTIFICATE", cert.Raw),
		keyFile:  encode("PRIVATE KEY", private),
		caFile:   encode("CERTIFICATE", a.cert.Raw),
	}, nil
}

func (a *Authority) issue(
	name string, usage ...x509.ExtKeyUsage,
) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	return a.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usage,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:    []string{"localhost"},
	})
}

// sign fills in the template and signs it, with its own key if there is no authority yet.
func (a *Authority) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("throwaway: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("throwaway: %w", err)
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-certLife) // A test may set a server's clock back.
	template.NotAfter = time.Now().Add(certLife)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("throwaway: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("throwaway: %w", err)
	}
	return cert, key, nil
}
