package dotenv

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// packed is an upload of files.
func packed(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, f := range files {
		w := gzip.NewWriter(&b)
		_, err := w.Write([]byte(f))
		require.NoError(t, err)
		require.NoError(t, w.Close())
	}
	return b.Bytes()
}

func parse(t testing.TB, files ...string) ([]Variable, error) {
	t.Helper()
	upload := packed(t, files...)
	return Parse(bytes.NewReader(upload), int64(len(upload)))
}

// The vectors are those of GitLab's spec/services/ci/parse_dotenv_artifact_service_spec.rb and some more.
func TestWhatGitLabReads(t *testing.T) {
	for text, want := range map[string][]Variable{
		"KEY1=VAR1\nKEY2=VAR2\n":                 {{"KEY1", "VAR1"}, {"KEY2", "VAR2"}},
		"KEY1 =VAR1":                             {{"KEY1", "VAR1"}},
		"skateboard=🛹":                           {{"skateboard", "🛹"}},
		"KEY1=V A R 1":                           {{"KEY1", "V A R 1"}},
		`KEY1="VAR1"`:                            {{"KEY1", `"VAR1"`}},
		"KEY1='VAR1'":                            {{"KEY1", "'VAR1'"}},
		`KEY1="  VAR1  "`:                        {{"KEY1", `"  VAR1  "`}},
		"KEY1=":                                  {{"KEY1", ""}},
		"KEY1=VAR1\nKEY2=${KEY1}_Test\n":         {{"KEY1", "VAR1"}, {"KEY2", "${KEY1}_Test"}},
		"KEY1=VAR1         # This is variable\n": {{"KEY1", "VAR1         # This is variable"}},
		"KEY1=VAR1KEY2=VAR1":                     {{"KEY1", "VAR1KEY2=VAR1"}},
		"":                                       nil,
		"A=1\r\nB=2\r\n":                         {{"A", "1"}, {"B", "2"}},
		"A=1\nB=2\nA=3":                          {{"A", "3"}, {"B", "2"}},
		"\ufeffA=1":                              {{"A", "1"}},
		"A=\xff":                                 {{"A", "\ufffd"}},
		"  A  =  b\t":                            {{"A", "b"}},
	} {
		got, err := parse(t, text)
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, got, "%q", text)
	}
}

func TestWhatGitLabRefuses(t *testing.T) {
	const signs = "Validation failed: Key can contain only letters, digits and '_'."
	for text, want := range map[string]string{
		"🛹=skateboard":                  signs,
		"K E Y 1=VAR1":                  signs,
		"a-b=1":                         signs,
		"=VAR1":                         "Validation failed: Key can't be blank, Key can contain only letters, digits and '_'.",
		"{ 'KEY1': 'VAR1' }":            "Invalid Format",
		"KEY1=A\n\nKEY2=B\n":            "Invalid Format",
		"# comment\nKEY1=A\n":           "Invalid Format",
		strings.Repeat("a", 256) + "=1": "Validation failed: Key is too long (maximum is 255 characters)",
	} {
		_, err := parse(t, text)
		require.EqualError(t, err, want, "%q", text)
	}
}

func TestLimits(t *testing.T) {
	var many strings.Builder
	for i := range MaxVariables {
		fmt.Fprintf(&many, "KEY%d=%d\n", i, i)
	}
	got, err := parse(t, many.String())
	require.NoError(t, err)
	require.Len(t, got, MaxVariables)
	_, err = parse(t, many.String(), "ONE_MORE=1\n")
	require.EqualError(t, err, "Dotenv files cannot have more than 20 variables")
	_, err = parse(t, many.String(), "KEY3=again\n")
	require.NoError(t, err)

	_, err = Parse(bytes.NewReader(packed(t, "A=1")), MaxSize)
	require.EqualError(t, err, "Dotenv Artifact Too Big. Maximum Allowable Size: 5120")
	_, err = Parse(bytes.NewReader(packed(t, "A=1")), MaxSize-1)
	require.NoError(t, err)
}

func TestUploadsThatAreNoGzip(t *testing.T) {
	whole := packed(t, "A=1\n")
	for name, upload := range map[string][]byte{
		"text": []byte("A=1\n"), "cut short": whole[:len(whole)-4], "rubbish behind": append(bytes.Clone(whole), 'x'),
	} {
		_, err := Parse(bytes.NewReader(upload), int64(len(upload)))
		require.EqualError(t, err, "Invalid Format", name)
	}
	got, err := Parse(bytes.NewReader(nil), 0)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestUTF16(t *testing.T) {
	for _, order := range []interface {
		binary.ByteOrder
		binary.AppendByteOrder
	}{binary.LittleEndian, binary.BigEndian} {
		var text []byte
		for _, u := range utf16.Encode([]rune("\ufeffA=über 🛹\r\nB=2\r\n")) {
			text = order.AppendUint16(text, u)
		}
		got, err := parse(t, string(text))
		require.NoError(t, err)
		require.Equal(t, []Variable{{"A", "über 🛹"}, {"B", "2"}}, got)
	}
}

// FuzzParse looks for files that are read as something that GitLab would not store, or not the same when written again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"A=1\nB=2", "A = b\n", "\ufeffA=1", "A=\xff\n", "\xff\xfeA\x00=\x001\x00", "=1", "\n", "A==", strings.Repeat("A=1\n", 50), "A=\x00x\x00"} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		got, err := parse(t, one, two)
		if err != nil {
			require.Nil(t, got)
			require.NotEmpty(t, err.Error())
			return
		}
		require.LessOrEqual(t, len(got), MaxVariables)
		var again strings.Builder
		seen := map[string]bool{}
		for _, v := range got {
			require.NoError(t, checkKey(v.Key))
			require.False(t, seen[v.Key], "two variables %q", v.Key)
			seen[v.Key] = true
			require.True(t, utf8.ValidString(v.Value))
			require.NotContains(t, v.Value, "\n")
			fmt.Fprintf(&again, "%s=%s\n", v.Key, v.Value)
		}
		if len(packed(t, again.String())) < MaxSize {
			same, err := parse(t, again.String())
			require.NoError(t, err)
			require.Equal(t, got, same)
		}
	})
}
