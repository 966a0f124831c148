package helperimage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// collect finds what goes into the image: the tools, and above them switchyard-job, which changes most often.
func collect(ctx context.Context, opts Options) (*image, error) {
	git, machine, err := findGit()
	if err != nil {
		return nil, err
	}
	job, err := readELF(opts.Job)
	if err != nil {
		if errors.Is(err, errNotELF) {
			return nil, fmt.Errorf("%w: %w, so it is no switchyard-job for Linux", ErrCannot, err)
		}
		return nil, fmt.Errorf("read switchyard-job: %w", err)
	}
	if job.machine != machine {
		return nil, fmt.Errorf("%w: %s is for %s and %s for %s", ErrCannot, git, architectures[machine], opts.Job, architectures[job.machine])
	}
	if job.loader != "" {
		return nil, fmt.Errorf("%s is no static program: build it with CGO_ENABLED=0", opts.Job)
	}

	tools := make(tree)
	c := &collector{tree: tools, libraries: newLibraries(tools)}
	for _, step := range []func() error{
		func() error { return c.git(ctx, git) },
		c.programs,
		func() error { return c.shell(ctx) },
		c.lookups,
		c.certificates,
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("collect the helper image's files: %w", err)
		}
	}
	c.system()
	top := make(tree)
	if err := top.file(JobBinary, opts.Job); err != nil {
		return nil, fmt.Errorf("read switchyard-job: %w", err)
	}
	return &image{architecture: architectures[machine], layers: []tree{tools, top}, level: cmp.Or(opts.level, compression)}, nil
}

type collector struct {
	tree      tree
	libraries *libraries
}

// program puts a program of PATH into the image, with its libraries, under its name there. found is false if this
// machine has none.
func (c *collector) program(name string) (found bool, err error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return false, nil //nolint:nilerr // that it is not there is the answer
	}
	return true, c.binary("/usr/bin/"+name, path)
}

// binary puts the program at path to name in the image, with its libraries.
func (c *collector) binary(name, path string) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	if err := c.tree.file(name, target); err != nil {
		return err
	}
	if err := c.libraries.add(target); err != nil && !errors.Is(err, errNotELF) {
		return err
	}
	return nil
}

// more are programs that jobs' git, its hooks and their keys may ask for; the image has those that this machine has.
var more = []string{"bash", "git-lfs", "ssh", "ssh-add", "ssh-agent", "ssh-keyscan"}

func (c *collector) programs() error {
	for _, name := range more {
		if _, err := c.program(name); err != nil {
			return err
		}
	}
	if c.tree.has("/usr/bin/git-lfs") {
		// What `git lfs install --system` writes.
		c.tree.text("/etc/gitconfig", "[filter \"lfs\"]\n\tclean = git-lfs clean -- %f\n\tsmudge = git-lfs smudge -- %f\n"+
			"\tprocess = git-lfs filter-process\n\trequired = true\n")
	}
	return nil
}

// coreutils are what git's own scripts, hooks and credential helpers commonly use, for machines without busybox.
var coreutils = strings.Fields(`[ awk basename cat chgrp chmod chown cp cut date dd dirname du echo env expr false find grep
	gunzip gzip head hostname id kill ln ls mkdir mktemp mv nice nohup od paste printf ps pwd readlink realpath rm rmdir sed seq
	sha256sum sleep sort stat tail tar tee test touch tr true tty uname uniq wc which whoami xargs`)

// shell puts sh and the usual small programs into the image: busybox, or those of this machine.
func (c *collector) shell(ctx context.Context) error {
	const sh, busybox = "/usr/bin/sh", "busybox"
	found, err := c.program(busybox)
	if err != nil {
		return err
	}
	if found {
		list, err := output(ctx, busybox, "--list")
		if err != nil {
			return err
		}
		for name := range strings.FieldsSeq(list) {
			if path := "/usr/bin/" + name; !c.tree.has(path) && !strings.Contains(name, "/") {
				c.tree.link(path, busybox)
			}
		}
	}
	if !c.tree.has(sh) {
		path, err := exec.LookPath("sh")
		if err != nil {
			return err
		}
		if err := c.binary(sh, path); err != nil {
			return err
		}
	}
	if found {
		return nil
	}
	for _, name := range coreutils {
		if _, err := c.program(name); err != nil {
			return err
		}
	}
	return nil
}

// lookups are what the C library loads by itself: names of hosts and users, and encodings, which git asks for where
// .gitattributes says working-tree-encoding.
func (c *collector) lookups() error {
	if c.libraries.home == "" {
		return nil
	}
	for _, name := range []string{"libnss_dns.so.2", "libnss_files.so.2", "libgcc_s.so.1"} {
		if err := c.libraries.optional(name); err != nil {
			return err
		}
	}
	for _, pattern := range []string{
		"gconv-modules", "gconv-modules.cache", "gconv-modules.d/*.conf", "CP125*.so", "ISO8859-*.so", "UNICODE.so", "UTF-*.so",
	} {
		names, err := filepath.Glob(filepath.Join(c.libraries.home, "gconv", pattern))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := c.tree.file(name, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// bundles is where systems have their CA certificates; programs look at the first place, or at their own system's.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
}

func (c *collector) certificates() error {
	for _, name := range bundles {
		if !isFile(name) {
			continue
		}
		for _, at := range []string{bundles[0], name} {
			if err := c.tree.file(at, name); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("no CA certificates at any of %s: install ca-certificates", strings.Join(bundles, ", "))
}

func (c *collector) system() {
	for _, dir := range beforeUsr {
		c.tree.dir("/usr/"+dir, 0o755)
		c.tree["/"+dir] = &entry{mode: fs.ModeSymlink | 0o777, link: "usr/" + dir}
	}
	for _, dir := range []string{"/dev", "/etc", "/proc", "/run", "/sys", "/var"} {
		c.tree.dir(dir, 0o755)
	}
	c.tree.dir("/root", 0o700)
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		c.tree.dir(dir, fs.ModeSticky|0o777)
	}
	c.tree.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
	c.tree.text("/etc/group", "root:x:0:\nnogroup:x:65534:\n")
	c.tree.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
}

// output runs a program of this machine, without what its caller set for git.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "GIT_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
