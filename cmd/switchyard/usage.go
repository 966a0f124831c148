package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

type usageCmd struct {
	configFlag
	outputFlag
}

// Help is shown by --help.
func (usageCmd) Help() string {
	return `SLOTS are those that a project has now, and behind the slash its quota if it has one; WAITING are jobs that are claimed and
have no slot. SHARE is its part of the fleet among those that run or wait now. SLOT-TIME is what its jobs have used, WAIT
how long half of them, and 95 of 100, waited at most for a slot: in GitLab and here together, exact to half a power of two.
Projects that used nothing for 24 hours are left out. -o json has the same with seconds.`
}

func (c *usageCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.GetUsageResponse, error) {
		return a.GetUsage(ctx, &adminv1.GetUsageRequest{})
	})
	if err != nil {
		return err
	}
	const header = "PROJECT\tSLOTS\tWAITING\tSHARE\tWEIGHT\tSLOT-TIME 1H\t24H\tWAIT 1H P50/P95\t24H P50/P95"
	return printList(c.outputFlag, std.out, answer.GetProjects(), header, func(p *adminv1.ProjectUsage) []string {
		slots, share := fmt.Sprint(p.GetSlots()), "-"
		if q := p.GetHardQuota(); q > 0 {
			slots += fmt.Sprintf("/%d", q)
		}
		if p.GetPaused() {
			slots += " paused"
		}
		if p.GetShare() > 0 {
			share = fmt.Sprintf("%.0f%%", 100*p.GetShare())
		}
		return []string{
			p.GetProjectPath(), slots, fmt.Sprint(p.GetWaiting()), share, fmt.Sprint(max(p.GetWeight(), 1)),
			slotTime(p.GetHour().GetSlotSeconds()), slotTime(p.GetDay().GetSlotSeconds()), waits(p.GetHour()), waits(p.GetDay()),
		}
	})
}

func slotTime(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

func waits(u *adminv1.Used) string {
	if u.GetJobs() == 0 {
		return "-"
	}
	return short(u.GetWaitP50()) + "/" + short(u.GetWaitP95())
}

// short is a duration with two figures.
func short(d *durationpb.Duration) string {
	t := d.AsDuration()
	switch {
	case t < time.Second:
		t = t.Round(10 * time.Millisecond)
	case t < 10*time.Second:
		t = t.Round(100 * time.Millisecond)
	default:
		t = t.Round(time.Second)
	}
	return t.String()
}

type auditCmd struct {
	configFlag
	outputFlag
	Limit  uint32 `default:"50" help:"At most so many entries, the newest first; 1000 at most."`
	Before int64  `help:"Only entries older than the one with this ID."`
}

func (c *auditCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.ListAuditResponse, error) {
		return a.ListAudit(ctx, &adminv1.ListAuditRequest{Before: c.Before, Limit: c.Limit})
	})
	if err != nil {
		return err
	}
	return printList(c.outputFlag, std.out, answer.GetEntries(), "ID\tAT\tWHO\tWHAT\tOF WHAT\tDETAIL", func(e *adminv1.AuditEntry) []string {
		detail, more, _ := strings.Cut(strings.TrimSpace(e.GetDetail()), "\n")
		if more != "" {
			detail += " …"
		}
		return []string{fmt.Sprint(e.GetId()), e.GetAt().AsTime().Format(time.RFC3339), e.GetActor(), e.GetAction(), e.GetSubject(), orDash(detail)}
	})
}
