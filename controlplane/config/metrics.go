package config

import (
	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// metrics reads the key of that name; "" if it is wrong.
func (r *reader) metrics(n *yaml.Node, path string) (listen string) {
	n = yamlform.Resolve(n)
	if r.Mapping(n, path, yamlform.Fields{
		"listen": func(n *yaml.Node, p string) { listen = r.listen(n, p) },
	}) && yamlform.Value(n, "listen") == nil {
		r.Problem(n, path+".listen", "is missing", "for example 127.0.0.1:9464; whoever reaches it reads the figures")
	}
	return listen
}
