import pytest

from research.train.markdown import to_html


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Data\ntext\n## More", "<h3>Data</h3>\n<p>text</p>\n<h4>More</h4>"),
        ("one\ntwo\n\nthree", "<p>one\ntwo</p>\n<p>three</p>"),
        ("- a **b**\n- `c`\n  d", "<ul><li>a <strong>b</strong></li><li><code>c</code>\n  d</li></ul>"),
        (
            "| a | b |\n|---|---|\n| x | 1,2 |",
            "<table><tr><th>a</th><th class=number>b</th></tr><tr><td>x</td><td class=number>1,2</td></tr></table>",
        ),
        ("```\na\n\n# b <i>\n```\n\nc", "<pre>a\n\n# b &lt;i&gt;</pre>\n<p>c</p>"),
        ("<script>&", "<p>&lt;script&gt;&amp;</p>"),
        ("`<b>` **<i>**", "<p><code>&lt;b&gt;</code> <strong>&lt;i&gt;</strong></p>"),
        ("", ""),
        ("\n\n  \n", ""),
        ("```\nnever closed", "<pre>never closed</pre>"),
    ],
)
def test_blocks(text: str, expected: str) -> None:
    assert to_html(text) == expected
