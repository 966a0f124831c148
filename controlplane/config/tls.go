package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

func (r *reader) caFile(n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	file := r.path(text)
	data, _, err := readFile(file)
	switch {
	case err != nil:
		r.Problem(yamlform.Resolve(n), path, fmt.Sprintf("%s cannot be read: %v", file, err), "name a file with the PEM certificate of the CA that signed GitLab's")
	case !x509.NewCertPool().AppendCertsFromPEM(data):
		r.Problem(yamlform.Resolve(n), path, file+" holds no certificate", "it must hold PEM blocks \"CERTIFICATE\"")
	}
	return file
}

// pemFile checks that a file is there and holds a PEM block whose type ends with kind.
func (r *reader) pemFile(n *yaml.Node, path, kind, hint string) string {
	text, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	file := r.path(text)
	data, info, err := readFile(file)
	if err != nil {
		r.Problem(yamlform.Resolve(n), path, fmt.Sprintf("%s cannot be read: %v", file, err), hint)
		return ""
	}
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			r.Problem(yamlform.Resolve(n), path, fmt.Sprintf("%s holds no PEM block %q", file, kind), hint)
			return ""
		}
		if strings.HasSuffix(block.Type, kind) {
			break
		}
	}
	if kind != "CERTIFICATE" && info.Mode().Perm()&0o077 != 0 {
		r.Warn(yamlform.Resolve(n), path, fmt.Sprintf("others can read %s (mode %#o)", file, info.Mode().Perm()), "chmod 600 "+file)
	}
	return file
}

// clientCertificate checks that there are both files or neither, and that they belong together.
func (r *reader) clientCertificate(n *yaml.Node, path string, runner *Runner) {
	cert, key := yamlform.Value(n, "tls_cert_file"), yamlform.Value(n, "tls_key_file")
	switch {
	case (cert == nil) != (key == nil):
		r.Problem(n, path, "has only one of tls_cert_file and tls_key_file", "set both or neither")
	case runner.CertFile == "" || runner.KeyFile == "": // said already, or neither is set
	default:
		if _, err := tls.LoadX509KeyPair(runner.CertFile, runner.KeyFile); err != nil {
			r.Problem(yamlform.Resolve(key), path+".tls_key_file",
				fmt.Sprintf("%s with the certificate %s: %v", runner.KeyFile, runner.CertFile, err), "name the certificate and its own key, which must not be encrypted")
		}
	}
}
