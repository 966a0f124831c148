package main

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/artifacts"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
	"github.com/switchyard-ci/switchyard/job/archive"
)

const (
	// maxArtifact is the largest file in bytes that a job may upload here: the disk is the user's own.
	maxArtifact = 64 << 30
	// maxReport is the largest report in bytes that is unpacked.
	maxReport = 4 << 30
)

// kept are the artifacts of one job.
type kept struct {
	job  coordinator.Job
	list []coordinator.Artifact
}

// artifactsOf are those of all jobs that have some.
func artifactsOf(gitlab *coordinator.Coordinator, p coordinator.Pipeline) ([]kept, error) {
	var all []kept
	for _, j := range p.Jobs {
		list, err := gitlab.Artifacts(j.ID)
		if err != nil {
			return nil, fmt.Errorf("look for artifacts: %w", err)
		}
		if len(list) > 0 {
			all = append(all, kept{j, list})
		}
	}
	return all, nil
}

// listArtifacts shows what the jobs have uploaded, a line for each.
func listArtifacts(w io.Writer, gitlab *coordinator.Coordinator, all []kept, dir string) error {
	var b strings.Builder
	for _, k := range all {
		for _, a := range k.list {
			fmt.Fprintf(&b, "artifacts of %s: %s", tracetext.Clean(k.job.Name), describe(gitlab, k.job.ID, a))
		}
	}
	switch {
	case len(all) == 0:
		return nil
	case dir != "":
		fmt.Fprintf(&b, "artifacts are in %s\n", dir)
	default:
		b.WriteString("artifacts are gone now; --artifacts DIR keeps them\n")
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("show the artifacts: %w", err)
	}
	return nil
}

func describe(gitlab *coordinator.Coordinator, job int64, a coordinator.Artifact) string {
	size := units.HumanSize(float64(a.Size))
	if a.Type != artifacts.Archive {
		return fmt.Sprintf("report %s, %s\n", a.Type, size)
	}
	entries, err := gitlab.ArtifactEntries(job)
	if err != nil {
		return fmt.Sprintf("%s, %s, which cannot be read: %s\n", a.Name, size, tracetext.Clean(err.Error()))
	}
	files := 0
	for _, e := range entries {
		if e.Mode.IsRegular() {
			files++
		}
	}
	name := a.Name
	if a.ExposedAs != "" {
		name = a.ExposedAs + ", " + name
	}
	return fmt.Sprintf("%s with %s, %s\n", name, count(files, "file"), size)
}

// saveArtifacts copies them: the files of a job's archive into a folder of the job's name, its reports into one beside.
func saveArtifacts(ctx context.Context, gitlab *coordinator.Coordinator, all []kept, dir string, warn func(string)) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("--artifacts: %w", err)
	}
	used := map[string]bool{}
	for _, k := range all {
		name := folderName(k.job.Name, used)
		for _, a := range k.list {
			if err := saveArtifact(ctx, gitlab, k.job.ID, a, filepath.Join(dir, name), warn); err != nil {
				return fmt.Errorf("keep the artifacts of %s: %w", k.job.Name, err)
			}
		}
	}
	return nil
}

var notInAFolder = regexp.MustCompile(`[^\pL\pN_.+-]+`)

// folderName makes a folder's name of a job's, one that no other job has.
func folderName(job string, used map[string]bool) string {
	name := strings.Trim(notInAFolder.ReplaceAllString(job, "-"), "-.")
	if name == "" {
		name = "job"
	}
	for n, base := 2, name; used[name] || used[name+reportsSuffix]; n++ {
		name = base + "-" + strconv.Itoa(n)
	}
	used[name], used[name+reportsSuffix] = true, true
	return name
}

const reportsSuffix = ".reports"

func saveArtifact(ctx context.Context, gitlab *coordinator.Coordinator, job int64, a coordinator.Artifact, folder string, warn func(string)) (err error) {
	f, _, err := gitlab.OpenArtifact(job, a.Type)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	if a.Type != artifacts.Archive {
		folder += reportsSuffix
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if a.Type == artifacts.Archive {
		_, err = archive.Unpack(ctx, f, a.Size, root, archive.Limits{}, warn)
		return err
	}
	return saveReport(f, a, root)
}

// saveReport writes a report as the job had it.
func saveReport(f io.Reader, a coordinator.Artifact, root *os.Root) error {
	name := a.Name
	if a.Format == artifacts.Gzip {
		z, err := gzip.NewReader(f)
		if err != nil {
			return fmt.Errorf("report %s: %w", a.Type, err)
		}
		f, name = z, strings.TrimSuffix(name, ".gz")
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(f, maxReport+1))
	if err == nil && n > maxReport {
		err = fmt.Errorf("it is larger than %s", units.BytesSize(maxReport))
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("report %s: %w", a.Type, err)
	}
	return nil
}
