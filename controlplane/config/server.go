package config

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

func (r *reader) listen(n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	host, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		r.Problem(yamlform.Resolve(n), path, yamlform.Quoted(text)+" is not an address with a port", "write host:port, for example 0.0.0.0:7443 for all interfaces")
		return ""
	}
	return net.JoinHostPort(host, port)
}

func (r *reader) dataFolder(n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	folder := r.path(text)
	info, err := os.Stat(folder)
	switch {
	case err != nil: // made at the first start
	case !info.IsDir():
		r.Problem(yamlform.Resolve(n), path, yamlform.Quoted(text)+" is not a folder", "name another one; it is made if it is missing")
	case info.Mode().Perm()&0o077 != 0:
		r.Warn(yamlform.Resolve(n), path, fmt.Sprintf("others can look into %s (mode %#o)", folder, info.Mode().Perm()), "chmod 700 "+folder)
	}
	return folder
}
