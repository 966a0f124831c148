// Package ownpipeline tests that this repository's .gitlab-ci.yml is a pipeline, and the intended one.
package ownpipeline

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

const root = "../.."

func jobs(t *testing.T, variables ...ciconfig.Variable) map[string]ciconfig.Job {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, ".gitlab-ci.yml"))
	require.NoError(t, err)
	pipeline, err := ciconfig.Compile(".gitlab-ci.yml", text, ciconfig.Options{Pipeline: variables})
	require.NoError(t, err)
	require.Empty(t, pipeline.Warnings)
	require.Equal(t, []string{"check", "build", "test"}, pipeline.Stages)
	byName := map[string]ciconfig.Job{}
	for _, job := range pipeline.Jobs {
		byName[job.Name] = job
	}
	return byName
}

func TestPipeline(t *testing.T) {
	jobs := jobs(t)
	require.NotContains(t, jobs, "race")
	require.True(t, jobs["modules"].AllowFailure)
	require.True(t, jobs["build"].NeedsDeclared)
	require.Empty(t, jobs["build"].Needs)
	require.Equal(t, []string{"go version"}, jobs["vet"].BeforeScript)
}

func TestRaceDetectorOnRequest(t *testing.T) {
	require.Contains(t, jobs(t, ciconfig.Variable{Key: "RACE", Value: "1"}), "race")
}

// A folder that no part of the matrix covers would never be tested there.
func TestMatrixCoversTheTree(t *testing.T) {
	jobs := jobs(t)
	folders, err := filepath.Glob(filepath.Join(root, "*"))
	require.NoError(t, err)
	for _, folder := range folders {
		if tests(t, folder) {
			job, found := jobs["test: ["+filepath.Base(folder)+"]"]
			require.True(t, found, "%s has tests, but no job has PART: %[1]s", filepath.Base(folder))
			require.ElementsMatch(t, []string{"vet", "build"}, []string{job.Needs[0].Job, job.Needs[1].Job})
		}
	}
}

// tests tells whether there are Go tests below a folder of this module.
func tests(t *testing.T, folder string) bool {
	t.Helper()
	found := false
	require.NoError(t, filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "testdata" || entry.Name() == "build" || entry.Name() == "bin"):
			return filepath.SkipDir
		case strings.HasSuffix(path, "_test.go"):
			found = true
			return filepath.SkipAll
		}
		return nil
	}))
	return found
}
