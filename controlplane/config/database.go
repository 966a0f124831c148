package config

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// Database is where the control plane's state is: the URL of a PostgreSQL database, or empty for a file in the data folder.
// There may be a password in it, which printing and logging it leave out.
type Database string

// String is the URL without the password; "" for the data folder.
func (d Database) String() string {
	u, err := url.Parse(string(d))
	if err != nil {
		return "(a URL that cannot be read)"
	}
	query := u.Query()
	for _, key := range []string{"password", "sslpassword"} {
		if query.Has(key) {
			query.Set(key, "xxxxx")
			u.RawQuery = query.Encode()
		}
	}
	return u.Redacted()
}

// GoString implements fmt.GoStringer.
func (d Database) GoString() string { return fmt.Sprintf("%q", d.String()) }

// LogValue implements slog.LogValuer.
func (d Database) LogValue() slog.Value { return slog.StringValue(d.String()) }

var databaseURL = secret{
	"url", "the URL", "the database's URL", databaseHint, "DATABASE_URL", 8192,
}

const databaseHint = "write postgres://user:password@host:5432/database; special characters in the password are written as %XX"

// database reads the key of that name; "" if it is wrong.
func (r *reader) database(n *yaml.Node, path string) Database {
	n = yamlform.Resolve(n)
	var text string
	known := yamlform.Fields{}
	r.secret(databaseURL, known, func(url string) { text = url })
	if !r.Mapping(n, path, known) {
		return ""
	}
	given := r.given(databaseURL, n, path)
	if len(given) == 0 {
		r.Problem(n, path, "has no URL", "put the URL of a PostgreSQL database into a file of mode 600 and name it with url_file (or use url_env); "+
			"without the key database the state is kept in the data folder")
	}
	if text == "" || len(given) != 1 {
		return ""
	}
	at, field := yamlform.Resolve(yamlform.Value(n, given[0])), path+"."+given[0]
	u, problem := checkDatabase(text)
	if problem != "" {
		r.Problem(at, field, problem, databaseHint)
		return ""
	}
	if host := u.Hostname(); host != "" && !isLocal(host) && !encrypts(u.Query().Get("sslmode")) {
		r.Warn(at, field, "the connection to "+host+" may be in the clear", "add ?sslmode=verify-full (or require) to the URL")
	}
	return Database(text)
}

// checkDatabase says what is wrong with a URL. It shows nothing of it: what does not hold together may have the password
// in any place.
func checkDatabase(text string) (u *url.URL, problem string) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, "is not a URL"
	case u.Scheme != "postgres" && u.Scheme != "postgresql":
		return nil, "is not the URL of a PostgreSQL database"
	case u.Opaque != "":
		return nil, "is not a whole URL"
	case strings.Contains(strings.Trim(u.Path, "/"), "/"):
		return nil, "names more than one database, or the password has a / in it"
	case u.Fragment != "":
		return nil, "has a # in it"
	case u.Host == "" && !u.Query().Has("host"):
		return nil, "names no host"
	case strings.Trim(u.Path, "/") == "" && !u.Query().Has("dbname") && !u.Query().Has("database"):
		return nil, "names no database"
	}
	return u, ""
}

func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func encrypts(sslmode string) bool {
	return sslmode == "require" || sslmode == "verify-ca" || sslmode == "verify-full"
}
