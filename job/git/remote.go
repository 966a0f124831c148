package git

import (
	"encoding/base64"
	"errors"
	"net/url"
	"path"
	"slices"
	"strings"
)

// remote is where sources come from.
type remote struct {
	url string // without credentials
	// hosts are scheme and host of this GitLab by HTTP, under each of its names. These get the job's credentials, no others.
	hosts          []string
	user, password string
	// base is what SSH addresses of this GitLab are replaced by, without a slash at its end, and ssh are those addresses.
	base string
	ssh  []string
}

// remote finds out where sources come from. Errors never hold a URL: it may hold the token.
func (s *Sources) remote() (remote, error) {
	u, err := url.Parse(s.URL)
	if err != nil || s.URL == "" || s.URL[0] == '-' {
		return remote{}, errors.New("git_info.repo_url: not a URL")
	}
	r := remote{url: s.URL, user: "gitlab-ci-token", password: s.Token}
	origin := u
	if isHTTP(u) {
		if u.Host == "" {
			return remote{}, errors.New("git_info.repo_url: it names no host")
		}
		if u.User != nil {
			if p, ok := u.User.Password(); ok {
				r.user, r.password = u.User.Username(), p
			}
		}
	}
	if s.CloneURL != "" {
		if origin, err = s.cloneURL(u); err != nil {
			return remote{}, err
		}
		r.url = origin.String()
	}
	for _, u := range []*url.URL{origin, u} {
		if isHTTP(u) {
			r.hosts = append(r.hosts, onlyHost(u))
		}
	}
	r.hosts = slices.Compact(r.hosts)
	if isHTTP(origin) {
		bare := *origin
		bare.User = nil
		r.url = bare.String()
	}
	if s.ForceHTTPS {
		r.rewriteSSH(s, u)
	}
	return r, nil
}

// cloneURL is the project's URL at the address that the runner is told to clone from.
func (s *Sources) cloneURL(project *url.URL) (*url.URL, error) {
	c, err := url.Parse(s.CloneURL)
	if err != nil || c.Host == "" || !isHTTP(c) && c.Scheme != "ssh" {
		return nil, errors.New("clone_url: it must be an http, https or ssh URL with a host")
	}
	name := project.Path
	if p := "/" + s.Server.ProjectPath + ".git"; s.Server.ProjectPath != "" && strings.HasSuffix(name, p) {
		name = p // a GitLab below a path may be there without that path
	}
	c.Path, c.RawPath, c.RawQuery, c.Fragment = path.Join("/", c.Path, name), "", "", ""
	if c.Scheme == "ssh" && c.User == nil {
		c.User = url.User("git")
	}
	return c, nil
}

// rewriteSSH notes which SSH addresses lead to this GitLab.
func (r *remote) rewriteSSH(s *Sources, project *url.URL) {
	for _, from := range []string{s.CloneURL, s.Server.URL} {
		u, err := url.Parse(from)
		if err == nil && isHTTP(u) && slices.Contains(r.hosts, onlyHost(u)) {
			r.base = strings.TrimRight(onlyHost(u)+u.EscapedPath(), "/")
			break
		}
	}
	if r.base == "" && len(r.hosts) > 0 {
		r.base = r.hosts[0]
	}
	host := s.Server.SSHHost
	if host == "" {
		host = s.Server.Host
	}
	if host == "" {
		host = project.Hostname()
	}
	if r.base == "" || host == "" {
		return
	}
	r.base = strings.ReplaceAll(r.base, "=", "%3D") // it becomes part of a name that ends with the first of these
	if port := s.Server.SSHPort; port != "" && port != "22" {
		r.ssh = []string{"ssh://git@" + host + ":" + port + "/"}
		return
	}
	r.ssh = []string{"git@" + host + ":", "ssh://git@" + host + "/", "ssh://git@" + host + ":22/"}
}

func isHTTP(u *url.URL) bool { return u.Scheme == "http" || u.Scheme == "https" }

func onlyHost(u *url.URL) string { return (&url.URL{Scheme: u.Scheme, Host: u.Host}).String() }

func (r remote) basic() string {
	return base64.StdEncoding.EncodeToString([]byte(r.user + ":" + r.password))
}

// secrets are the configuration that makes git show the credentials, for commands that fetch.
func (r remote) secrets() [][2]string {
	if r.password == "" {
		return nil
	}
	var list [][2]string
	for _, host := range r.hosts {
		list = append(list, [2]string{"http." + host + "/.extraHeader", "Authorization: Basic " + r.basic()})
	}
	return list
}

// rewrites are the configuration that leads SSH addresses of this GitLab to its HTTP.
func (r remote) rewrites() [][2]string {
	var list [][2]string
	for _, address := range r.ssh {
		list = append(list, [2]string{"url." + r.base + "/.insteadOf", address})
	}
	return list
}

// helper answers git's question for a password with the job's own token.
const helper = `!f() { if test "$1" = get; then echo "password=$CI_JOB_TOKEN"; fi; }; f`

// write writes what git commands in the project and in its submodules need to know, the user's own ones too.
func (r remote) write(c *configText, caFile string) {
	for _, host := range r.hosts {
		c.section("credential", host, [2]string{"helper", ""}, [2]string{"helper", helper}, [2]string{"username", r.user})
		if caFile != "" {
			c.section("http", host, [2]string{"sslCAInfo", caFile})
		}
	}
	if len(r.ssh) > 0 {
		var values [][2]string
		for _, address := range r.ssh {
			values = append(values, [2]string{"insteadOf", address})
		}
		c.section("url", r.base+"/", values...)
	}
}

// shortest is the length from which on a password is taken for a secret: nobody said that it is one, and hiding a short
// word would hide much else.
const shortest = 8

// Secrets are what of the URL must not be seen in a trace.
func (s *Sources) Secrets() []string {
	r, err := s.remote()
	if err != nil || len(r.hosts) == 0 || r.password == "" {
		return nil
	}
	secrets := []string{r.basic()}
	if r.password != s.Token && len(r.password) >= shortest {
		secrets = append(secrets, r.password)
	}
	return secrets
}
