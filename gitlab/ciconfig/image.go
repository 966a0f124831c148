package ciconfig

import (
	"strconv"
	"unicode/utf8"
)

// Image is a container image: of a job (`image`) or of one of its services. Variables in it are the runner's to expand.
type Image struct {
	Name       string
	Entrypoint []string // nil: the image's own
	PullPolicy []string // always, if-not-present, never, to be tried in this order; nil: the runner's
	// Docker and Kubernetes are for executors of that kind alone; nil without.
	Docker     *DockerOptions
	Kubernetes *KubernetesOptions

	// Of services only.
	Alias     string   // one name, or several separated by commas or spaces
	Command   []string // nil: the image's own
	Variables []Variable
}

// DockerOptions is `docker` of an image; an empty field was not given.
type DockerOptions struct{ Platform, User string }

// KubernetesOptions is `kubernetes` of an image.
type KubernetesOptions struct{ User string }

// image reads `image`.
func (c *compiler) image(n *node, path string) *Image {
	return c.imageable(n, path, imageKeywords())
}

// services reads `services`.
func (c *compiler) services(n *node, path string) []Image {
	if n.kind != kindList {
		c.fail(n, path, "write - postgres:17", "`services` must be a list of images, this is %s", n.kind)
		return nil
	}
	out := []Image{}
	for i, it := range n.items {
		if image := c.imageable(it, join(path, strconv.Itoa(i)), serviceKeywords()); image != nil {
			out = append(out, *image)
		}
	}
	return out
}

func (c *compiler) imageable(n *node, path string, known keywords) *Image {
	if n.kind == kindString {
		if blank(n.text) {
			c.fail(n, path, "", "the name of the image is empty")
			return nil
		}
		return &Image{Name: n.text}
	}
	if n.kind != kindMap {
		c.fail(n, path, "write the name as a string, or a mapping with `name`", "an image must be a string or a mapping, this is %s", n.kind)
		return nil
	}
	c.check(n, path, known)
	name := n.present("name")
	if name == nil {
		c.fail(n, path, "", "the image has no `name`")
		return nil
	}
	image := &Image{}
	image.Name, _ = c.text(name, join(path, "name"))
	if name.kind == kindString && blank(name.text) {
		c.fail(name, join(path, "name"), "", "the name of the image is empty")
	}
	if v := n.present("entrypoint"); v != nil {
		image.Entrypoint, _ = c.texts(v, join(path, "entrypoint"))
	}
	if v := n.present("pull_policy"); v != nil {
		image.PullPolicy = c.pullPolicy(v, join(path, "pull_policy"))
	}
	if v := n.present("docker"); v != nil {
		image.Docker = &DockerOptions{}
		c.executorOptions(v, join(path, "docker"),
			option{key: "platform", to: &image.Docker.Platform, limit: 64}, option{key: "user", to: &image.Docker.User, limit: 255})
	}
	if v := n.present("kubernetes"); v != nil {
		image.Kubernetes = &KubernetesOptions{}
		c.executorOptions(v, join(path, "kubernetes"), option{key: "user", to: &image.Kubernetes.User, limit: 255, number: true})
	}
	if _, service := known["alias"]; service {
		c.serviceOnly(image, n, path)
	}
	return image
}

// serviceOnly reads what an image of a job cannot have.
func (c *compiler) serviceOnly(image *Image, n *node, path string) {
	if v := n.present("alias"); v != nil {
		image.Alias, _ = c.text(v, join(path, "alias"))
	}
	if v := n.present("command"); v != nil {
		image.Command, _ = c.commands(v, join(path, "command"))
	}
	if v := n.present("variables"); v != nil {
		image.Variables = c.variables(v, join(path, "variables"), plainVariables)
	}
}

func pullPolicies() []string { return []string{"always", "if-not-present", "never"} }

func (c *compiler) pullPolicy(n *node, path string) []string {
	if n.kind == kindString {
		if !c.oneOf(n, path, pullPolicies()) {
			return nil
		}
		return []string{n.text}
	}
	list, ok := c.texts(n, path)
	if ok && len(list) == 0 {
		c.fail(n, path, "leave the keyword out for the runner's own policy", "the list is empty")
	}
	for i, it := range n.items {
		if ok {
			c.oneOf(it, join(path, strconv.Itoa(i)), pullPolicies())
		}
	}
	return list
}

// option is a text of `docker` or `kubernetes`.
type option struct {
	key    string
	to     *string
	limit  int  // in characters
	number bool // a number is as good
}

func (c *compiler) executorOptions(n *node, path string, options ...option) {
	known := keywords{}
	for _, o := range options {
		known[o.key] = true
	}
	if n.kind != kindMap {
		c.fail(n, path, "", "this must be a mapping with %s, it is %s", known.list(), n.kind)
		return
	}
	c.check(n, path, known)
	for _, o := range options {
		v, here := n.present(o.key), join(path, o.key)
		if v == nil {
			continue
		}
		text, ok := v.text, true
		if v.kind != kindInt || !o.number {
			text, ok = c.text(v, here)
		}
		switch length := utf8.RuneCountInString(text); {
		case !ok:
		case length == 0 || length > o.limit:
			c.fail(v, here, "", "the text has %d characters, it must have 1 to %d", length, o.limit)
		default:
			*o.to = text
		}
	}
}
