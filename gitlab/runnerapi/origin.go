package runnerapi

import "encoding/json"

// Origin is where a job comes from, as its variables say. Whoever writes a project's configuration can set these
// variables, too, so they are good for telling jobs of one project apart, not for trust.
type Origin struct {
	Environment string // CI_ENVIRONMENT_NAME: what the job deploys to; empty if nothing
	Source      string // CI_PIPELINE_SOURCE: push, schedule, merge_request_event, …
	User        string // GITLAB_USER_LOGIN: who started the pipeline
}

// UnmarshalJSON reads the payload's list of variables; of two with one key the later counts. Values that are longer than
// 255 bytes are cut: they are names.
func (o *Origin) UnmarshalJSON(list []byte) error {
	var variables []struct {
		Key   string          `json:"key"`
		Value json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(list, &variables); err != nil {
		return nil //nolint:nilerr // no list of variables: who reads them all says so; here it must not hide the fields after it
	}
	for _, v := range variables {
		var to *string
		switch v.Key {
		case "CI_ENVIRONMENT_NAME":
			to = &o.Environment
		case "CI_PIPELINE_SOURCE":
			to = &o.Source
		case "GITLAB_USER_LOGIN":
			to = &o.User
		default:
			continue
		}
		if err := json.Unmarshal(v.Value, to); err != nil {
			*to = "" // not text: as if it were missing
		}
		*to = (*to)[:min(len(*to), 255)]
	}
	return nil
}

// MarshalJSON writes the variables that are known.
func (o Origin) MarshalJSON() ([]byte, error) {
	list := []Variable{}
	for _, v := range []Variable{
		{Key: "CI_ENVIRONMENT_NAME", Value: o.Environment}, {Key: "CI_PIPELINE_SOURCE", Value: o.Source}, {Key: "GITLAB_USER_LOGIN", Value: o.User},
	} {
		if v.Value != "" {
			list = append(list, v)
		}
	}
	return json.Marshal(list)
}
