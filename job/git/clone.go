//go:build unix

package git

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var versionPattern = regexp.MustCompile(`git version (\d+)\.(\d+)`)

// clone gets the project by git clone, if git is 2.49 or later (FF_USE_GIT_NATIVE_CLONE); done says whether it is. The
// project folder is not there.
func (s *Sources) clone(ctx context.Context, r remote) (done bool, err error) {
	code, said, err := s.Run(ctx, []string{"git", "--version"}, s.environment(), "/")
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("git --version: %w", err)
	}
	if code != 0 {
		return false, &ExitError{Command: "--version", Code: code}
	}
	v := versionPattern.FindSubmatch(said)
	if v == nil {
		return false, nil
	}
	major, _ := strconv.Atoi(string(v[1]))
	minor, _ := strconv.Atoi(string(v[2]))
	if major < 2 || major == 2 && minor < 49 {
		return false, nil
	}
	switch {
	case s.Depth > 0:
		s.Notice(fmt.Sprintf("Cloning repository for %s with git depth set to %d...", s.Ref, s.Depth))
	case s.Ref != "":
		s.Notice(fmt.Sprintf("Cloning repository for %s...", s.Ref))
	default:
		s.Notice("Cloning repository...")
	}
	s.tellCorrelation()
	template := filepath.Join(s.Temp, "git-template")
	var c configText
	s.writeDefaults(&c)
	r.write(&c, s.CAFile)
	parent := filepath.Dir(s.Dir)
	err = os.RemoveAll(template)
	if err == nil {
		err = os.MkdirAll(template, s.mode())
	}
	if err == nil {
		err = writeNew(filepath.Join(template, "config"), c.String())
	}
	if err == nil {
		err = os.MkdirAll(parent, s.mode())
	}
	if err != nil {
		return false, fmt.Errorf("write git's configuration: %w", err)
	}
	args := []string{"clone", "--no-checkout", r.url, s.Dir, "--template", template}
	if s.Depth > 0 {
		args = append(args, "--depth", strconv.Itoa(s.Depth))
	}
	switch {
	case strings.HasPrefix(s.Ref, "refs/"):
		args = append(args, "--revision", s.Ref)
	case s.Ref != "":
		args = append(args, "--branch", s.Ref)
	}
	return true, s.git(ctx, true, s.fetching(r), parent, slices.Concat(args, s.CloneFlags)...)
}
