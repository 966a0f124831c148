package ciconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"go.yaml.in/yaml/v3"
)

// maxFileBytes bounds one file (GitLab's max_yaml_size_bytes).
const maxFileBytes = 2 << 20

// loader turns one YAML file into nodes by the rules of Ruby's Psych, which GitLab reads configurations with.
type loader struct {
	file   string
	report *report
	built  map[*yaml.Node]*node
	open   map[*yaml.Node]bool // being built: an alias to one of them contains itself
	total  *int                // values written in all files so far
}

// load returns the mapping that a file holds, or nil after a report.
func (c *compiler) load(file string, src []byte) *node {
	r := c.report
	l := &loader{file: file, report: r, built: map[*yaml.Node]*node{}, open: map[*yaml.Node]bool{}, total: &c.nodes}
	if len(src) > maxFileBytes {
		r.at(pos{file: file}, "", fmt.Sprintf("the file has %d bytes, the limit is %d", len(src), maxFileBytes), "split it with include:local")
		return nil
	}
	doc := l.document(src)
	if doc == nil {
		return nil
	}
	n := l.build(doc, 1)
	if n == nil {
		return nil
	}
	if n.kind != kindMap {
		r.at(n.at, "", "the configuration is "+n.kind.String()+", not a mapping of keywords and jobs", "")
		return nil
	}
	return n
}

func (l *loader) fail(n *yaml.Node, message, hint string) {
	l.report.at(l.pos(n), "", message, hint)
}

func (l *loader) pos(n *yaml.Node) pos { return pos{file: l.file, line: n.Line, col: n.Column} }

// document returns the content of the only document of a file.
func (l *loader) document(src []byte) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var docs []*yaml.Node
	for len(docs) < 2 {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if len(docs) > 0 && hasHeader(docs[0]) {
				break
			}
			p, message, hint := syntaxError(l.file, src, err)
			l.report.at(p, "", message, hint)
			return nil
		}
		if len(doc.Content) == 1 {
			docs = append(docs, doc.Content[0])
		}
	}
	switch {
	case len(docs) == 0:
		l.report.at(pos{file: l.file, line: 1, col: 1}, "", "the configuration is empty", "it needs at least one job with a script")
		return nil
	case hasHeader(docs[0]):
		l.report.at(l.pos(docs[0].Content[0]), "spec", notSupported("spec"), "")
		return nil
	case len(docs) > 1:
		l.fail(docs[1], "the file has more than one YAML document", "remove the line '---' before it")
		return nil
	}
	return docs[0]
}

// hasHeader tells whether a document is the one with `spec` that stands before a configuration with inputs.
func hasHeader(y *yaml.Node) bool {
	return y.Kind == yaml.MappingNode && len(y.Content) == 2 && y.Content[0].Value == "spec" && y.Content[1].Kind == yaml.MappingNode && valueOf(y.Content[1], "script") == nil
}

func valueOf(y *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(y.Content); i += 2 {
		if y.Content[i].Value == name {
			return y.Content[i+1]
		}
	}
	return nil
}

// build returns the node for a YAML node, or nil after a report.
func (l *loader) build(y *yaml.Node, level int) *node {
	if !l.count(y, 1) {
		return nil
	}
	if level > maxDepth {
		l.fail(y, fmt.Sprintf("the configuration is nested more than %d levels deep", maxDepth), "")
		return nil
	}
	if y.Kind == yaml.AliasNode {
		return l.alias(y)
	}
	l.open[y] = true
	defer delete(l.open, y)
	var n *node
	switch y.Kind {
	case yaml.ScalarNode:
		n = l.scalar(y)
	case yaml.SequenceNode:
		n = l.sequence(y, level)
	case yaml.MappingNode:
		n = l.mapping(y, level)
	default:
		l.fail(y, "this YAML construct is not known", "")
	}
	if n == nil {
		return nil
	}
	if limit := n.tooBig(); limit != "" {
		l.fail(y, limit, "")
		return nil
	}
	l.built[y] = n
	return n
}

// count counts values against maxNodes; it reports the first that is too many.
func (l *loader) count(y *yaml.Node, n int) bool {
	before := *l.total
	*l.total += n
	if before <= maxNodes && *l.total > maxNodes {
		l.fail(y, fmt.Sprintf("the configuration has more than %d values with its merge keys written out", maxNodes), "split the pipeline")
	}
	return *l.total <= maxNodes
}

func (l *loader) alias(y *yaml.Node) *node {
	if l.open[y.Alias] {
		l.fail(y, fmt.Sprintf("the anchor %q contains itself", y.Value), "")
		return nil
	}
	return l.built[y.Alias] // nil if it was reported already
}

func (l *loader) sequence(y *yaml.Node, level int) *node {
	items := make([]*node, 0, len(y.Content))
	ok := true
	for _, c := range y.Content {
		n := l.build(c, level+1)
		if n == nil {
			ok = false
			continue
		}
		items = append(items, n)
	}
	if !ok {
		return nil
	}
	n := newList(l.pos(y), items)
	switch tag := y.ShortTag(); tag {
	case "!!seq":
	case "!reference":
		n.kind = kindReference
		if len(items) == 0 {
			l.fail(y, "!reference names nothing", "write !reference [job, keyword]")
			return nil
		}
		for i, it := range items {
			if it.kind != kindString {
				l.fail(y.Content[i], "!reference takes a list of strings, this is "+it.kind.String(), "write !reference [job, keyword]")
				return nil
			}
		}
	default:
		l.unknownTag(y, tag)
		return nil
	}
	return n
}

func (l *loader) unknownTag(y *yaml.Node, tag string) {
	hint := "the only tag that a configuration may use is !reference [job, keyword]"
	if near := nearest(tag, []string{"!reference"}); near != "" {
		hint = "did you mean " + near + " [job, keyword]?"
	}
	l.fail(y, fmt.Sprintf("the YAML tag %s is not known here", tag), hint)
}

// mapping builds a mapping. A merge key takes effect where it stands, as in Psych: it replaces the keys before it, and
// those after it replace its own. It may stand more than once.
func (l *loader) mapping(y *yaml.Node, level int) *node {
	if tag := y.ShortTag(); tag != "!!map" {
		l.unknownTag(y, tag)
		return nil
	}
	var fields []field
	index := map[string]int{}
	set := func(f field) {
		if i, ok := index[f.key]; ok {
			fields[i] = f
			return
		}
		index[f.key] = len(fields)
		fields = append(fields, f)
	}
	own := map[string]int{} // keys written here, with their line
	ok := true
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, v := y.Content[i], y.Content[i+1]
		if k.Kind == yaml.ScalarNode && k.ShortTag() == "!!merge" {
			value := l.build(v, level+1)
			ok = value != nil && l.merge(v, value, set) && ok
			continue
		}
		f, good := l.key(k, level)
		if good {
			if line, dup := own[f.key]; dup {
				l.fail(k, fmt.Sprintf("the key %q is in this mapping twice", f.key), fmt.Sprintf("the first one is in line %d", line))
				good = false
			} else {
				own[f.key] = k.Line
			}
		}
		f.value = l.build(v, level+1)
		if !good || f.value == nil {
			ok = false
			continue
		}
		set(f)
	}
	if !ok {
		return nil
	}
	return newMap(l.pos(y), fields)
}

func (l *loader) key(k *yaml.Node, level int) (field, bool) {
	n := l.build(k, level+1)
	if n == nil {
		return field{}, false
	}
	if !n.scalar() {
		l.fail(k, "a key is "+n.kind.String()+", not a string", "")
		return field{}, false
	}
	return field{key: n.text, raw: n.raw, kind: n.kind, at: l.pos(k)}, true
}

func (l *loader) merge(y *yaml.Node, value *node, set func(field)) bool {
	maps := []*node{value}
	if value.kind == kindList {
		maps = value.items
	}
	for _, m := range slices.Backward(maps) { // the first of a list wins
		if m.kind != kindMap {
			l.fail(y, "the merge key << takes a mapping or a list of mappings, this is "+m.kind.String(), "write <<: *anchor")
			return false
		}
		if !l.count(y, len(m.fields)) {
			return false
		}
		for _, f := range m.fields {
			set(f)
		}
	}
	return true
}
