package main

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed all:projects
var projectFiles embed.FS

// project is one of the demo's projects with what must become of its jobs.
type project struct {
	path   string // in GitLab
	folder string // in projects/
	about  string
	color  color
	want   map[string]string
	id     int64
}

func projects() []*project {
	return []*project{
		{
			path: "acme/website", folder: "website", about: "quick tests side by side", color: blue,
			want: map[string]string{
				"style": "success", "links": "success", "pages 1/3": "success", "pages 2/3": "success", "pages 3/3": "success",
			},
		},
		{
			path: "acme/compiler", folder: "compiler", about: "a matrix", color: purple,
			want: map[string]string{
				"build: [linux, amd64]": "success", "build: [linux, arm64]": "success", "build: [darwin, amd64]": "success",
				"build: [darwin, arm64]": "success", "report": "success",
			},
		},
		{
			path: "platform/payments", folder: "payments", about: "needs, and a scan that may fail", color: cyan,
			want: map[string]string{
				"compile": "success", "unit": "success", "scan": "failed", "staging": "success", "clean-up": "skipped",
			},
		},
	}
}

// make writes the project's files into a new git repository and commits them.
func (p *project) make(ctx context.Context, dir string) error {
	files, err := fs.Sub(projectFiles, "projects/"+p.folder)
	if err != nil {
		return err
	}
	if err := os.CopyFS(dir, files); err != nil {
		return fmt.Errorf("write the project %s: %w", p.path, err)
	}
	for _, args := range [][]string{
		{"init", "--quiet", "--initial-branch=main"}, {"add", "--all"}, {"commit", "--quiet", "--message", "First commit"},
	} {
		git := exec.CommandContext(ctx, "git", args...)
		git.Dir = dir
		git.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull,
			"GIT_AUTHOR_NAME=Demo", "GIT_AUTHOR_EMAIL=demo@example.com", "GIT_COMMITTER_NAME=Demo", "GIT_COMMITTER_EMAIL=demo@example.com")
		if out, err := git.CombinedOutput(); err != nil {
			return fmt.Errorf("git %s in %s: %w: %s", args[0], filepath.Base(dir), err, out)
		}
	}
	return nil
}
