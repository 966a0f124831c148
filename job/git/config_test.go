package git

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

var configs = []string{
	"",
	"[core]\n\tbare = false\n\tfilemode\n",
	"[submodule \"a b\"]\n\tpath = lib/x # here\n\turl = ../x.git ; there\n",
	"[Submodule \"q\\\"u\\\\o\"]\nPath=\"two words  \"  \n",
	"[a]\nb = one \\\n  two\n[c.D]\ne = \"x;y\"\\tz\\n\n",
	"[a] b = c\n[a \"B\"] d = \"\"\n",
	"# only\n; comments\n",
	"[a]\n\tb = \"open\n",
	"[a]\n\tb = \\q\n",
	"[a\nb = c\n",
	"[a]\r\n\tb = c\r\n",
	"[a \"x\"",
	"[url \"https://h/=\"]\n\tinsteadOf = git@h:\n\tinsteadOf = ssh://git@h/\n",
}

// What is read is what git reads, up to the first mistake.
func TestReadConfig(t *testing.T) {
	testbed.Need(t, testbed.Git)
	for _, text := range configs {
		require.Equal(t, gitReads(t, text), reads(text), "%q", text)
	}
}

func gitReads(t testing.TB, text string) string {
	name := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	// With a mistake git lists nothing, so lines are taken away until there is none.
	for {
		out, err := exec.Command("git", "config", "--file", name, "--null", "--list").Output()
		if err == nil {
			return string(out)
		}
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		cut := strings.TrimSuffix(string(b), "\n")
		cut = cut[:strings.LastIndexByte(cut, '\n')+1]
		require.NoError(t, os.WriteFile(name, []byte(cut), 0o600))
	}
}

// reads prints settings as git config --null --list does.
func reads(text string) string {
	var b strings.Builder
	for _, s := range readConfig(text) {
		b.WriteString(s.section)
		if s.sub != "" {
			b.WriteString("." + s.sub)
		}
		b.WriteString("." + s.key + "\n" + s.value + "\x00")
	}
	// git says nothing about the value of a name that stands alone.
	return strings.ReplaceAll(b.String(), ".filemode\ntrue\x00", ".filemode\x00")
}

func TestWrittenConfigIsReadBack(t *testing.T) {
	testbed.Need(t, testbed.Git)
	var c configText
	c.section("submodule", `q"u\o`, [2]string{"path", " a\tb\n\"c\" \\ # ; "}, [2]string{"url", ""})
	require.Equal(t, gitReads(t, c.String()), reads(c.String()))
	require.Equal(t, " a\tb\n\"c\" \\ # ; ", lastValue(readConfig(c.String()), "submodule", `q"u\o`, "path"))
}

func FuzzReadConfig(f *testing.F) {
	for _, text := range configs {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range readConfig(text) {
			require.NotEmpty(t, s.section)
			require.NotEmpty(t, s.key)
		}
	})
}

func TestDamaged(t *testing.T) {
	require.True(t, damaged("fatal: bad object HEAD"))
	require.True(t, damaged("fatal: detected dubious ownership in repository at '/builds/x'"))
	require.False(t, damaged("fatal: unable to access 'http://h/p.git/': Could not resolve host: h"))
	require.False(t, damaged("fatal: Authentication failed for 'http://h/p.git/'"))
}
