package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// maxPEMFile is how long a file of certificates or a key may be.
const maxPEMFile = 4 << 20

// tlsFiles turns the options' certificates into TLS configurations and notices when a file changed.
type tlsFiles struct {
	caFile, certFile, keyFile string
	ca                        []byte

	roots   *x509.CertPool // nil: the system's
	caStamp fileStamp

	mu        sync.Mutex
	cert      *tls.Certificate
	certStamp [2]fileStamp
}

// fileStamp tells two versions of a file apart.
type fileStamp struct {
	modified time.Time
	size     int64
}

func stampOf(path string) (fileStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}, err
	}
	return fileStamp{info.ModTime(), info.Size()}, nil
}

func newTLSFiles(o Options) (*tlsFiles, error) {
	f := &tlsFiles{caFile: o.CAFile, certFile: o.CertFile, keyFile: o.KeyFile, ca: o.CA}
	if (f.certFile == "") != (f.keyFile == "") {
		return nil, errors.New("a client certificate needs both its certificate file and its key file; only one is given")
	}
	if _, err := f.reloadCA(); err != nil {
		return nil, err
	}
	if f.certFile != "" {
		if _, err := f.clientCertificate(nil); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// custom says whether certificates other than the system's are trusted.
func (f *tlsFiles) custom() bool { return f.roots != nil }

func (f *tlsFiles) config() *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: f.roots}
	if f.certFile != "" {
		config.GetClientCertificate = f.clientCertificate
	}
	return config
}

// caChanged says whether the CA file differs from what was read. A file that is not there has not changed.
func (f *tlsFiles) caChanged() bool {
	if f.caFile == "" {
		return false
	}
	stamp, err := stampOf(f.caFile)
	return err == nil && stamp != f.caStamp
}

// reloadCA reads the CA file if it changed since the last time and says whether it did. After an error the roots are what
// they were.
func (f *tlsFiles) reloadCA() (changed bool, err error) {
	if f.caFile == "" && len(f.ca) == 0 {
		return false, nil
	}
	if f.roots != nil && !f.caChanged() {
		return false, nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool() // a machine without any: the given ones must do
	}
	if len(f.ca) > 0 && !roots.AppendCertsFromPEM(f.ca) {
		return false, errors.New("the CA certificates hold no PEM block of type CERTIFICATE")
	}
	var stamp fileStamp
	if f.caFile != "" {
		if stamp, err = stampOf(f.caFile); err != nil {
			return false, fmt.Errorf("CA file: %w", err)
		}
		pem, err := readPEM(f.caFile)
		if err != nil {
			return false, fmt.Errorf("CA file: %w", err)
		}
		if !roots.AppendCertsFromPEM(pem) {
			return false, fmt.Errorf("CA file %s: it holds no PEM block of type CERTIFICATE", f.caFile)
		}
	}
	f.roots, f.caStamp = roots, stamp
	return true, nil
}

// clientCertificate returns the client certificate as it is on the disk, at each handshake.
func (f *tlsFiles) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var stamps [2]fileStamp
	for i, path := range []string{f.certFile, f.keyFile} {
		stamp, err := stampOf(path)
		if err != nil {
			return f.lastCertificate(fmt.Errorf("client certificate: %w", err))
		}
		stamps[i] = stamp
	}
	if f.cert != nil && stamps == f.certStamp {
		return f.cert, nil
	}
	certPEM, err := readPEM(f.certFile)
	if err != nil {
		return f.lastCertificate(fmt.Errorf("client certificate: %w", err))
	}
	keyPEM, err := readPEM(f.keyFile)
	if err != nil {
		return f.lastCertificate(fmt.Errorf("key of the client certificate: %w", err))
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return f.lastCertificate(fmt.Errorf("client certificate %s with key %s: %w", f.certFile, f.keyFile, err))
	}
	f.cert, f.certStamp = &cert, stamps
	return f.cert, nil
}

// lastCertificate bridges the moment in which only one of the two files is new.
func (f *tlsFiles) lastCertificate(err error) (*tls.Certificate, error) {
	if f.cert != nil {
		return f.cert, nil
	}
	return nil, err
}

func readPEM(path string) ([]byte, error) {
	stamp, err := stampOf(path)
	if err != nil {
		return nil, err
	}
	if stamp.size > maxPEMFile {
		return nil, fmt.Errorf("%s has %d bytes, more than the limit of %d", path, stamp.size, maxPEMFile)
	}
	return os.ReadFile(path)
}
