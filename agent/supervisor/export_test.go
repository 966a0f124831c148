package supervisor

import "time"

// SetRetry replaces the first and the longest window in which a broken stream is opened again. The function that it returns
// undoes that.
func SetRetry(first, last time.Duration) (undo func()) {
	oldFirst, oldLast := firstRetry, lastRetry
	firstRetry, lastRetry = first, last
	return func() { firstRetry, lastRetry = oldFirst, oldLast }
}

// SetKillPatience replaces how long a job may take to obey, beside its kill grace. The function that it returns undoes that.
func SetKillPatience(d time.Duration) (undo func()) {
	old := killPatience
	killPatience = d
	return func() { killPatience = old }
}

// LaunchedFile is the name of the file that says that a job was given to its environment.
const LaunchedFile = launchedFile
