package client

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

const apiPath = "/api/v4/"

// baseURL makes the API's address of GitLab's, by gitlab-runner's rules: slashes at the end are cut, then "/ci".
func baseURL(raw string) (url.URL, error) {
	if raw == "" {
		return url.URL{}, errors.New("is empty; give the address of GitLab, for example https://gitlab.example.com")
	}
	u, err := url.Parse(raw)
	if err != nil {
		if parse := new(url.Error); errors.As(err, &parse) {
			err = parse.Err // without the URL, which may carry a password
		}
		return url.URL{}, fmt.Errorf("is not a URL: %w", err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return url.URL{}, errors.New("must begin with https:// or http://")
	case u.Host == "" || u.Hostname() == "":
		return url.URL{}, errors.New("names no host")
	case u.User != nil:
		return url.URL{}, errors.New("must not carry a user or a password; the runner's token is enough")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return url.URL{}, errors.New("must end with the path, without ? and #")
	}
	path := strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/ci")
	return url.URL{Scheme: u.Scheme, Host: u.Host, Path: path + apiPath}, nil
}

// redactURL returns a URL that may be printed.
func redactURL(raw string) string {
	if u, err := url.Parse(raw); err == nil {
		return u.Redacted()
	}
	if i := strings.LastIndexByte(raw, '@'); i >= 0 {
		return "…" + raw[i:]
	}
	return raw
}
