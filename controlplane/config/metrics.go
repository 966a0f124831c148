package config

import "go.yaml.in/yaml/v3"

// metrics reads the key of that name; "" if it is wrong.
func (r *reader) metrics(n *yaml.Node, path string) (listen string) {
	n = resolve(n)
	if r.mapping(n, path, fields{
		"listen": func(n *yaml.Node, p string) { listen = r.listen(n, p) },
	}) && value(n, "listen") == nil {
		r.problem(n, path+".listen", "is missing", "for example 127.0.0.1:9464; whoever reaches it reads the figures")
	}
	return listen
}
