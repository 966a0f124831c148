//go:build unix && race

package artifacts

// raceDetector: everything takes ten times as long.
const raceDetector = true
