//go:build !linux && !darwin

package throwaway

func removeSegment(string) {}
