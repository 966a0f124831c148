package config_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/config"
)

const withDatabase = `
database: {url_file: url}
runners:
  - {name: one, url: https://gitlab.example.com, token_file: token}
`

func TestDatabaseURLs(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://u:S3CRET@127.0.0.1/x":                     "",
		"postgresql://u:S3CRET@[::1]:6543/x":                  "",
		"postgres:///x?host=/run/postgresql&password=S3CRET":  "",
		"postgres://u:S3CRET@db1,db2/x?sslmode=verify-full":   "",
		"postgres://u:S3CRET@db/?dbname=x&sslmode=require":    "",
		"postgres://u:S3CRET@db.example.com/x":                "the connection to db.example.com may be in the clear; add ?sslmode=verify-full",
		"postgres://u:S3CRET@db.example.com/x?sslmode=prefer": "the connection to db.example.com may be in the clear",
		"mysql://u:S3CRET@db/x":                               "is not the URL of a PostgreSQL database; write postgres://",
		"postgres://u:S3CRET/1@db/x":                          "is not a URL; write postgres://",
		"postgres://u:S3CRET#1@db/x":                          "is not a URL",
		"postgres://u:S3CRET@db/x#y":                          "has a # in it",
		"postgres://u:S3CRET@db/x/y":                          "names more than one database",
		"postgres://u:S3CRET@db":                              "names no database",
		"postgres:///x?user=u&password=S3CRET":                "names no host",
		"postgres:S3CRET":                                     "is not a whole URL",
		"host=db password=S3CRET":                             "has spaces or special characters in it",
	} {
		t.Run(strings.ReplaceAll(url, "S3CRET", "secret"), func(t *testing.T) {
			path := write(t, map[string]string{"switchyard.yaml": withDatabase, "url": url + "\n", "token": "glrt-1"})
			c, warnings, err := config.Load(path)
			said := fmt.Sprint(err, warnings)
			require.NotContains(t, said, "S3CRET")
			switch {
			case want == "":
				require.Empty(t, warnings)
				require.NoError(t, err)
			case len(warnings) > 0:
				require.NoError(t, err)
				require.Contains(t, said, "switchyard.yaml:2:22: database.url_file: "+want)
				require.Len(t, warnings, 1)
			default:
				require.ErrorContains(t, err, "switchyard.yaml:2:22: database.url_file: ")
				require.ErrorContains(t, err, want)
				return
			}
			require.Equal(t, url, string(c.Database))

			var log bytes.Buffer
			slog.New(slog.NewTextHandler(&log, nil)).Info("start", "database", c.Database)
			for _, shown := range []string{fmt.Sprintf("%v %+v %#v %s", c.Database, c, c, c.Database), log.String()} {
				require.Contains(t, shown, "postgres")
				require.NotContains(t, shown, "S3CRET")
			}
		})
	}
}

func TestNoDatabase(t *testing.T) {
	for text, want := range map[string]string{
		"{}":                    "switchyard.yaml:1:11: database: has no URL; put the URL of a PostgreSQL database into a file",
		"[postgres://db/x]":     "switchyard.yaml:1:11: database: must be a mapping of keys to values, not a list",
		"{uri: postgres://d/x}": `switchyard.yaml:1:12: database.uri: unknown key; did you mean "url"?`,
	} {
		path := write(t, map[string]string{
			"switchyard.yaml": "database: " + text + "\nrunners:\n  - {name: one, url: https://gitlab.example.com, token_file: token}\n", "token": "glrt-1",
		})
		_, _, err := config.Load(path)
		require.ErrorContains(t, err, want)
	}
}
