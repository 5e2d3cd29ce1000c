package procfs

import (
	"strings"
	"testing"
)

const limitsText = `Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max file size             unlimited            unlimited            bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max core file size        0                    unlimited            bytes     
Max resident set          unlimited            unlimited            bytes     
Max processes             96365                96366                processes 
Max open files            20000                20001                files     
Max locked memory         8388608              8388608              bytes     
Max address space         unlimited            18446744073709551614 bytes     
Max file locks            unlimited            unlimited            locks     
Max pending signals       96365                96365                signals   
Max msgqueue size         819200               819200               bytes     
Max nice priority         0                    0                    
Max realtime priority     1                    2                    
Max realtime timeout      unlimited            unlimited            us        
`

func TestParseLimits(t *testing.T) {
	const no = Unlimited
	checkParse(t, ParseLimits, []parseCase[[]Limit]{{"6.18", limitsText, []Limit{
		{0, no, no},
		{1, no, no},
		{2, no, no},
		{3, 8388608, no},
		{4, 0, no},
		{5, no, no},
		{6, 96365, 96366},
		{
			7,
			20000, 20001,
		},
		{8, 8388608, 8388608},
		{9, no, 18446744073709551614},
		{10, no, no},
		{11, 96365, 96365},
		{12, 819200, 819200},
		{13, 0, 0},
		{14, 1, 2},
		{15, no, no},
	}}})
	cut := strings.LastIndex(limitsText, "Max realtime timeout")
	checkRefused(t, ParseLimits, "", "Max cpu time\n", limitsText[:cut], limitsText+limitsText[cut:],
		replaced(t, limitsText, "Max file size", "Max flie size"), replaced(t, limitsText, "20001", "2000x"),
		replaced(t, limitsText, "96366               ", ""))
}

func TestReadLimits(t *testing.T) {
	if l, err := ReadLimits(linux(t)); err != nil || len(l) != 16 || l[7].Soft == 0 {
		t.Errorf("limits of this process: %v, %v", l, err)
	}
}

func FuzzParseLimits(f *testing.F) { fuzz(f, ParseLimits, limitsText) }
