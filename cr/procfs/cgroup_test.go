package procfs

import "testing"

const cgroupText = "9:name=sys:temd:/a:/b\n2:cpu,cpuacct:/\n0::/../x y (deleted)\n"

func TestParseCgroup(t *testing.T) {
	checkParse(t, ParseCgroup, []parseCase[[]Cgroup]{{"hybrid", cgroupText, []Cgroup{
		{9, []string{"name=sys:temd"}, "/a:/b"}, {2, []string{"cpu", "cpuacct"}, "/"}, {0, nil, "/../x y (deleted)"},
	}}})
	checkRefused(t, ParseCgroup, "0\n", "0:/\n", "x::/\n", "0::a\n", cgroupText+"\n")
}

func TestReadCgroup(t *testing.T) {
	if c, err := ReadCgroup(linux(t)); err != nil || len(c) == 0 {
		t.Errorf("cgroups of this process: %v, %v", c, err)
	}
}

func FuzzParseCgroup(f *testing.F) { fuzz(f, ParseCgroup, cgroupText) }
