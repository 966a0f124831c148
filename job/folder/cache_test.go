package folder_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/folder"
)

func TestQuestionsAreChecked(t *testing.T) {
	for text, message := range map[string]string{
		`{"id":1,"op":"get","key":"a"}`:                                         "",
		`{"id":1,"op":"put","key":"` + strings.Repeat("k", 1024) + `","new":1}`: "",
		`{"id":0,"op":"get","key":"a"}`:                                         "has no id",
		`{"id":1,"op":"delete","key":"a"}`:                                      `asks for "delete"`,
		`{"id":1,"op":"head"}`:                                                  "has 0 bytes",
		`{"id":1,"op":"head","key":"` + strings.Repeat("k", 1025) + `"}`:        "has 1025 bytes",
		`nonsense`: "read a question",
	} {
		r, err := folder.ParseCacheRequest([]byte(text))
		if message != "" {
			require.ErrorContains(t, err, message)
			continue
		}
		require.NoError(t, err)
		line := folder.AppendEvent(nil, folder.Event{Kind: folder.EventAsk, Ask: r})
		require.Equal(t, 1, bytes.Count(line, []byte("\n")))
		require.LessOrEqual(t, len(line), folder.MaxLine)
	}
}

func TestTheGreatestQuestionFits(t *testing.T) {
	r := folder.CacheRequest{ID: 1<<64 - 1, Op: "head", Key: strings.Repeat("\x01", folder.MaxCacheKey)}
	require.NoError(t, r.Check())
	require.LessOrEqual(t, len(folder.AppendEvent(nil, folder.Event{Kind: folder.EventAsk, Ask: r})), folder.MaxLine)
}

func TestAnswersFitOrNot(t *testing.T) {
	a := folder.CacheAnswer{ID: 1, URL: "https://s3.test/?" + strings.Repeat("&", 16_000)}
	require.True(t, a.Fits(), "URLs are not escaped")
	a.URL += strings.Repeat("x", 1000)
	require.False(t, a.Fits())
}
