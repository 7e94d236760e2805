"""Phrases of time: what each means, where it stands in a sentence, on days when clocks and years change."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc import when

MONDAY = datetime(2026, 11, 23, 15, 30, tzinfo=ZoneInfo("Europe/Berlin"))

# What each phrase means on that Monday: [start, end) on the wall clock; a bare date is its midnight.
PHRASES = """
today                                 | 2026-11-23       | 2026-11-24
yesterday                             | 2026-11-22       | 2026-11-23
the day before yesterday              | 2026-11-21       | 2026-11-22
tomorrow                              | 2026-11-24       | 2026-11-25
last week                             | 2026-11-16       | 2026-11-23
this week                             | 2026-11-23       | 2026-11-30
the week before last                  | 2026-11-09       | 2026-11-16
next week                             | 2026-11-30       | 2026-12-07
the last week                         | 2026-11-16       | now
past 10 days                          | 2026-11-13       | now
last 3 days                           | 2026-11-20       | now
the last couple of weeks              | 2026-11-02       | now
past few months                       | 2026-06-23       | now
in the last 24 hours                  | 2026-11-22T15:30 | now
last hour                             | 2026-11-23T14:30 | now
three days ago                        | 2026-11-20       | 2026-11-21
two weeks ago                         | 2026-11-09       | 2026-11-16
two weeks ago on Monday               | 2026-11-09       | 2026-11-10
a week ago                            | 2026-11-16       | 2026-11-23
a few weeks ago                       | 2026-10-19       | 2026-11-16
a couple of days ago                  | 2026-11-20       | 2026-11-22
a few days ago                        | 2026-11-18       | 2026-11-22
several months ago                    | 2026-03-08       | 2026-09-07
2-3 weeks ago                         | 2026-11-02       | 2026-11-16
about a month ago                     | 2026-10-08       | 2026-11-07
a year ago                            | 2025-08-25       | 2026-02-21
a fortnight ago                       | 2026-11-09       | 2026-11-16
half an hour ago                      | 2026-11-23T14:54 | 2026-11-23T15:06
ten minutes ago                       | 2026-11-23T15:18 | 2026-11-23T15:22
two hours ago                         | 2026-11-23T13:00 | 2026-11-23T14:00
twenty one days ago                   | 2026-11-02       | 2026-11-03
on Monday                             | 2026-11-16       | 2026-11-17
Tuesday                               | 2026-11-17       | 2026-11-18
last Tuesday                          | 2026-11-17       | 2026-11-18
this Tuesday                          | 2026-11-24       | 2026-11-25
next Friday                           | 2026-12-04       | 2026-12-05
on Friday evening                     | 2026-11-20T17:00 | 2026-11-21
last Friday night                     | 2026-11-20T20:00 | 2026-11-21T05:00
Monday last week                      | 2026-11-16       | 2026-11-17
last week on Tuesday                  | 2026-11-17       | 2026-11-18
on Tuesday of last week               | 2026-11-17       | 2026-11-18
the Monday before last                | 2026-11-09       | 2026-11-10
two Mondays ago                       | 2026-11-09       | 2026-11-10
over the weekend                      | 2026-11-21       | 2026-11-23
last weekend                          | 2026-11-21       | 2026-11-23
this weekend                          | 2026-11-21       | 2026-11-23
the weekend before last               | 2026-11-14       | 2026-11-16
next weekend                          | 2026-12-05       | 2026-12-07
at the weekend                        | 2026-11-21       | 2026-11-23
in March                              | 2026-03-01       | 2026-04-01
last March                            | 2026-03-01       | 2026-04-01
March 2025                            | 2025-03-01       | 2025-04-01
in March last year                    | 2025-03-01       | 2025-04-01
mid-March                             | 2026-03-10       | 2026-03-23
early March                           | 2026-03-01       | 2026-03-14
late last month                       | 2026-10-19       | 2026-11-01
at the beginning of the month         | 2026-11-01       | 2026-11-09
the end of October                    | 2026-10-24       | 2026-11-01
first week of October                 | 2026-10-01       | 2026-10-08
last month                            | 2026-10-01       | 2026-11-01
this month                            | 2026-11-01       | 2026-12-01
the month before last                 | 2026-09-01       | 2026-10-01
last year                             | 2025-01-01       | 2026-01-01
this year                             | 2026-01-01       | 2027-01-01
in 2024                               | 2024-01-01       | 2025-01-01
early 2024                            | 2024-01-01       | 2024-05-27
2024-05                               | 2024-05-01       | 2024-06-01
Q3                                    | 2026-07-01       | 2026-10-01
last quarter                          | 2026-07-01       | 2026-10-01
the third quarter of 2025             | 2025-07-01       | 2025-10-01
first half of this year               | 2026-01-01       | 2026-07-03
in the summer                         | 2026-06-01       | 2026-09-01
last summer                           | 2026-06-01       | 2026-09-01
summer 2025                           | 2025-06-01       | 2025-09-01
last winter                           | 2025-12-01       | 2026-03-01
in spring                             | 2026-03-01       | 2026-06-01
yesterday evening                     | 2026-11-22T17:00 | 2026-11-23
yesterday morning                     | 2026-11-22T05:00 | 2026-11-22T12:00
this morning                          | 2026-11-23T05:00 | 2026-11-23T12:00
this afternoon                        | 2026-11-23T12:00 | 2026-11-23T18:00
tonight                               | 2026-11-23T18:00 | 2026-11-24T05:00
last night                            | 2026-11-22T18:00 | 2026-11-23T06:00
late last night                       | 2026-11-22T21:00 | 2026-11-23T06:00
earlier today                         | 2026-11-23       | now
earlier this week                     | 2026-11-23       | now
earlier                               | 2026-11-23       | now
the other day                         | 2026-11-16       | now
recently                              | 2026-11-09       | now
lately                                | 2026-11-09       | now
a while ago                           | 2026-05-27       | 2026-11-14
the other week                        | 2026-10-26       | 2026-11-19
ages ago                              | 2016-11-25       | 2026-09-25
2026-11-03                            | 2026-11-03       | 2026-11-04
3.11.2026                             | 2026-11-03       | 2026-11-04
11/15/2026                            | 2026-11-15       | 2026-11-16
2026/11/03                            | 2026-11-03       | 2026-11-04
November 3rd                          | 2026-11-03       | 2026-11-04
Nov 3                                 | 2026-11-03       | 2026-11-04
3 November                            | 2026-11-03       | 2026-11-04
the 3rd of November                   | 2026-11-03       | 2026-11-04
November 3, 2025                      | 2025-11-03       | 2025-11-04
3 Nov 2024                            | 2024-11-03       | 2024-11-04
the 15th                              | 2026-11-15       | 2026-11-16
on the 3rd                            | 2026-11-03       | 2026-11-04
Tuesday, 3 November                   | 2026-11-03       | 2026-11-04
Tuesday November 3rd                  | 2026-11-03       | 2026-11-04
since Tuesday                         | 2026-11-17       | now
since last week                       | 2026-11-16       | now
since March                           | 2026-03-01       | now
since yesterday morning               | 2026-11-22T05:00 | now
before March                          | 1970-01-02       | 2026-03-01
after November 3rd                    | 2026-11-04       | now
until Friday                          | 1970-01-02       | 2026-11-21
between Monday and Wednesday          | 2026-11-16       | 2026-11-19
from Friday to Monday                 | 2026-11-20       | 2026-11-24
between November and March            | 2025-11-01       | 2026-04-01
November 3 to 5                       | 2026-11-03       | 2026-11-06
3-5 November                          | 2026-11-03       | 2026-11-06
from 2026-11-01 to 2026-11-08         | 2026-11-01       | 2026-11-09
2026-11-01/2026-11-08                 | 2026-11-01       | 2026-11-09
2026-11-01..2026-11-08                | 2026-11-01       | 2026-11-09
yesterday at 3pm                      | 2026-11-22T15:00 | 2026-11-22T16:00
at 3pm                                | 2026-11-23T15:00 | 2026-11-23T16:00
around 3pm yesterday                  | 2026-11-22T14:00 | 2026-11-22T16:00
yesterday between 2 and 4pm           | 2026-11-22T14:00 | 2026-11-22T16:00
yesterday after 5pm                   | 2026-11-22T17:00 | 2026-11-23
Monday before noon                    | 2026-11-16       | 2026-11-16T12:00
the morning of November 3rd           | 2026-11-03T05:00 | 2026-11-03T12:00
2026-11-03T14:30                      | 2026-11-03T14:30 | 2026-11-03T14:31
2026-11-03T14:30Z                     | 2026-11-03T15:30 | 2026-11-03T15:31
on Christmas Eve                      | 2025-12-24       | 2025-12-25
last Christmas                        | 2025-12-25       | 2025-12-26
over Easter                           | 2026-04-05       | 2026-04-06
since New Year's                      | 2026-01-01       | now
Halloween                             | 2026-10-31       | 2026-11-01
the day before Halloween              | 2026-10-30       | 2026-10-31
the week before Christmas             | 2025-12-15       | 2025-12-22
yesterday or the day before           | 2026-11-21       | 2026-11-23
Saturday or Sunday                    | 2026-11-21       | 2026-11-23
sometime last week                    | 2026-11-16       | 2026-11-23
at some point last month              | 2026-10-01       | 2026-11-01
one evening last week                 | 2026-11-16       | 2026-11-23
this time last year                   | 2025-11-22       | 2025-11-25
this past week                        | 2026-11-16       | now
in the past two weeks                 | 2026-11-09       | now
so far this year                      | 2026-01-01       | now
this year so far                      | 2026-01-01       | now
last Sunday                           | 2026-11-22       | 2026-11-23
February 29                           | 2024-02-29       | 2024-03-01
ever                                  | 1970-01-02       | 2200-01-01
in the evening                        | 2026-11-22T17:00 | 2026-11-23
march                                 | 2026-03-01       | 2026-04-01
may                                   | 2026-05-01       | 2026-06-01
sat                                   | 2026-11-21       | 2026-11-22
2024                                  | 2024-01-01       | 2025-01-01
just now                              | 2026-11-23T15:15 | now
from Monday on                        | 2026-11-16       | now
by Friday                             | 1970-01-02       | 2026-11-21
week 40                               | 2026-09-28       | 2026-10-05
in recent weeks                       | 2026-11-09       | now
the second half of October            | 2026-10-16       | 2026-11-01
29 February 2024                      | 2024-02-29       | 2024-03-01
within the last two weeks             | 2026-11-09       | now
over the past month                   | 2026-10-23       | now
the last day of October               | 2026-10-31       | 2026-11-01
this month so far                     | 2026-11-01       | now
in November                           | 2026-11-01       | 2026-12-01
last November                         | 2025-11-01       | 2025-12-01
tomorrow evening                      | 2026-11-24T17:00 | 2026-11-25
at the end of last year               | 2025-10-01       | 2026-01-01
over the last 30 days                 | 2026-10-24       | now
past year                             | 2025-11-23       | now
previous month                        | 2026-10-01       | 2026-11-01
the previous week                     | 2026-11-16       | 2026-11-23
two days ago in the evening           | 2026-11-21T17:00 | 2026-11-22
Saturday afternoon                    | 2026-11-21T12:00 | 2026-11-21T18:00
on Sunday at noon                     | 2026-11-22T11:00 | 2026-11-22T14:00
last Thursday around 9am              | 2026-11-19T08:00 | 2026-11-19T10:00
yesterday before lunch                | 2026-11-22       | 2026-11-22T11:00
from 9 to 11 yesterday                | 2026-11-22T09:00 | 2026-11-22T11:00
between 9am and noon on Friday        | 2026-11-20T09:00 | 2026-11-20T12:00
Tuesday after 17:30                   | 2026-11-17T17:30 | 2026-11-18
in the early hours of Sunday          | 2026-11-22       | 2026-11-22T05:00
since the beginning of the year       | 2026-01-01       | now
since Monday morning                  | 2026-11-16T05:00 | now
after last weekend                    | 2026-11-23       | now
before yesterday                      | 1970-01-02       | 2026-11-22
up to last Friday                     | 1970-01-02       | 2026-11-21
till 2026-11-10                       | 1970-01-02       | 2026-11-11
between October 3 and October 10      | 2026-10-03       | 2026-10-11
from Monday last week until yesterday | 2026-11-16       | 2026-11-23
in mid October                        | 2026-10-10       | 2026-10-23
early this month                      | 2026-11-01       | 2026-11-13
the last week of October              | 2026-10-25       | 2026-11-01
the second week of October            | 2026-10-08       | 2026-10-15
the first day of the month            | 2026-11-01       | 2026-11-02
Christmas Day 2024                    | 2024-12-25       | 2024-12-26
around Christmas                      | 2025-12-24       | 2025-12-27
Good Friday                           | 2026-04-03       | 2026-04-04
on Valentine's Day                    | 2026-02-14       | 2026-02-15
Thanksgiving 2025                     | 2025-11-27       | 2025-11-28
the day after Christmas               | 2025-12-26       | 2025-12-27
two days before Halloween             | 2026-10-29       | 2026-10-30
a decade ago                          | 2016-05-27       | 2017-05-22
about three weeks ago                 | 2026-11-02       | 2026-11-09
almost a year ago                     | 2025-08-25       | 2026-02-21
an hour or so ago                     | 2026-11-23T14:00 | 2026-11-23T15:00
3 hrs ago                             | 2026-11-23T11:54 | 2026-11-23T13:06
90 minutes ago                        | 2026-11-23T13:42 | 2026-11-23T14:18
the past 48 hours                     | 2026-11-21T15:30 | now
a couple of hours ago                 | 2026-11-23T11:54 | 2026-11-23T14:06
in the past hour                      | 2026-11-23T14:30 | now
Sept 2025                             | 2025-09-01       | 2025-10-01
2025-09                               | 2025-09-01       | 2025-10-01
in 2025                               | 2025-01-01       | 2026-01-01
the summer of 2025                    | 2025-06-01       | 2025-09-01
winter                                | 2025-12-01       | 2026-03-01
last autumn                           | 2025-09-01       | 2025-12-01
the first quarter                     | 2026-01-01       | 2026-04-01
Q4 2025                               | 2025-10-01       | 2026-01-01
a month ago                           | 2026-10-08       | 2026-11-07
two months ago                        | 2026-09-08       | 2026-10-08
three years ago                       | 2023-05-27       | 2024-05-21
the week of October 5th               | 2026-10-05       | 2026-10-12
week 45                               | 2026-11-02       | 2026-11-09
the Tuesday before last               | 2026-11-10       | 2026-11-11
Wednesday two weeks ago               | 2026-11-11       | 2026-11-12
this Friday                           | 2026-11-27       | 2026-11-28
all of last week                      | 2026-11-16       | 2026-11-23
back in June                          | 2026-06-01       | 2026-07-01
one day last week                     | 2026-11-16       | 2026-11-23
at any time                           | 1970-01-02       | 2200-01-01
the last decade                       | 2016-11-23       | now
29/10/2026                            | 2026-10-29       | 2026-10-30
10/29/2026                            | 2026-10-29       | 2026-10-30
2026-11-03 09:15                      | 2026-11-03T09:15 | 2026-11-03T09:16
Sunday, November 15th, 2026           | 2026-11-15       | 2026-11-16
15th of October last year             | 2025-10-15       | 2025-10-16
for the last two months               | 2026-09-23       | now
in recent days                        | 2026-11-09       | now
these days                            | 2026-11-09       | now
a moment ago                          | 2026-11-23T15:15 | now
some time ago                         | 2026-05-27       | 2026-11-14
the other night                       | 2026-11-16       | now
early yesterday evening               | 2026-11-22T17:00 | 2026-11-22T20:30
late Friday afternoon                 | 2026-11-20T15:00 | 2026-11-20T18:00
all day                               | 2026-11-23       | 2026-11-24
the end of last week                  | 2026-11-19       | 2026-11-23
at the start of last month            | 2026-10-01       | 2026-10-09
all week                              | 2026-11-23       | 2026-11-30
"""

# The same on days when clocks or years change: hours that pass count, besides where it starts and ends.
SPECIAL = """
Europe/Berlin       2026-03-29T12:00 | today                | 2026-03-29       | 2026-03-30       | 23
Europe/Berlin       2026-03-29T12:00 | last night           | 2026-03-28T18:00 | 2026-03-29T06:00 | 11
Europe/Berlin       2026-03-29T12:00 | past 24 hours        | 2026-03-28T11:00 | now              | 24
Europe/Berlin       2026-03-29T12:00 | at 2:30              | 2026-03-29T03:30 | 2026-03-29T03:31 | 0.0167
Europe/Berlin       2026-03-29T12:00 | last week            | 2026-03-16       | 2026-03-23       | 168
Europe/Berlin       2026-10-25T12:00 | today                | 2026-10-25       | 2026-10-26       | 25
Europe/Berlin       2026-10-25T12:00 | last night           | 2026-10-24T18:00 | 2026-10-25T06:00 | 13
Europe/Berlin       2026-10-25T12:00 | past 24 hours        | 2026-10-24T13:00 | now              | 24
Europe/Berlin       2026-10-25T12:00 | over the weekend     | 2026-10-24       | 2026-10-26       | 49
Europe/Berlin       2027-01-02T09:00 | yesterday            | 2027-01-01       | 2027-01-02       | 24
Europe/Berlin       2027-01-02T09:00 | last week            | 2026-12-21       | 2026-12-28       | 168
Europe/Berlin       2027-01-02T09:00 | last month           | 2026-12-01       | 2027-01-01       | 744
Europe/Berlin       2027-01-02T09:00 | last year            | 2026-01-01       | 2027-01-01       | 8760
Europe/Berlin       2027-01-02T09:00 | December 30          | 2026-12-30       | 2026-12-31       | 24
Europe/Berlin       2027-01-02T09:00 | New Year's Eve       | 2026-12-31       | 2027-01-01       | 24
Europe/Berlin       2027-01-02T09:00 | this weekend         | 2027-01-02       | 2027-01-04       | 48
Europe/Berlin       2027-01-02T09:00 | last weekend         | 2026-12-26       | 2026-12-28       | 48
America/New_York    2026-11-01T20:00 | since yesterday      | 2026-10-31       | now              | 45
America/New_York    2026-11-01T20:00 | last 24 hours        | 2026-10-31T21:00 | now              | 24
America/Santiago    2026-09-06T10:00 | today                | 2026-09-06T01:00 | 2026-09-07       | 23
America/Santiago    2026-09-06T10:00 | yesterday            | 2026-09-05       | 2026-09-06T01:00 | 24
Asia/Kolkata        2026-01-01T00:15 | last night           | 2025-12-31T18:00 | 2026-01-01T06:00 | 12
Asia/Kolkata        2026-01-01T00:15 | on Thursday          | 2025-12-25       | 2025-12-26       | 24
Pacific/Auckland    2028-02-29T23:59 | February 29          | 2028-02-29       | 2028-03-01       | 24
Pacific/Auckland    2028-02-29T23:59 | next month           | 2028-03-01       | 2028-04-01       | 744
"""

# Sentences with the phrases marked.
SENTENCES = """
what was that article I read [last week] about LLMs?
that thing [from Monday] about ficus
What did I read [on Tuesday evening] about llamas and [since yesterday] about dogs
the article I may have read [in may] about march madness
who is on Psychology Today [this week]
I sat in the sun [last Saturday]
an article about Black Friday deals I saw [two weeks ago]
the article on spring boot I read [in spring]
how do I learn piano in 10 minutes
what was the blog about the 2008 crisis I read [in 2024]?
the 3rd party cookies article
what happened [on the 3rd]?
show me [yesterday's] article about solar panels
find that piece "Yesterday" by the Beatles
open today.com and news on monday.com pricing
the piece about the last week of Pompeii
the 3pm meeting notes [from November 3rd, 2025] please
which pages did I visit [between Monday and Wednesday]?
article [from a few days ago] on how to spend 3 weeks in Japan
did I read anything [recently] about fall protection
anything [since the beginning of the month] about mortgages
pages I read [over the weekend or last week] about sailing
The piece on Christmas markets I looked at [in december]
that long read, [sometime in early March], about whales
the thing I was reading [at 3 yesterday afternoon]
an article on how the week went
what about [the day before yesterday]
last minute travel deals
The guide to second hand cameras [from half an hour ago]
the article about sleep [from like two weeks ago]
which article did I read [on wed]
[Dec 2025] articles
articles about fasting for 16 hours a day
Have I [ever] read about 'last year' songs
the Sunday Times piece [on Friday]
the piece about Wednesday Addams
the mon cheri advert and the sat nav review
"""


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def at(text: str, now: datetime) -> datetime:
    return now if text == "now" else datetime.fromisoformat(text).replace(tzinfo=now.tzinfo)


@pytest.mark.parametrize(("phrase", "start", "end"), rows(PHRASES))
def test_when_a_phrase_means_its_period(phrase: str, start: str, end: str) -> None:
    """Start and end on an ordinary day; `loose` contains both; the text is what was said."""
    period = when.parse(phrase, MONDAY)
    assert (period.start, period.end) == (at(start, MONDAY), at(end, MONDAY))
    assert period.loose[0] <= period.start < period.end <= period.loose[1]
    assert period.text == phrase


@pytest.mark.parametrize(("place", "phrase", "start", "end", "hours"), rows(SPECIAL))
def test_when_clocks_and_years_change(place: str, phrase: str, start: str, end: str, hours: str) -> None:
    """A day of 23 or 25 hours, a midnight that is skipped, the turn of a year, 29 February."""
    zone, moment = place.split()
    now = datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(zone))
    period = when.parse(phrase, now)
    assert (period.start, period.end) == (at(start, now), at(end, now))
    assert (period.end.timestamp() - period.start.timestamp()) / 3600 == pytest.approx(float(hours), abs=1e-3)


@pytest.mark.parametrize("marked", SENTENCES.strip().splitlines())
def test_when_phrases_are_found_in_sentences(marked: str) -> None:
    """Each phrase with its preposition, and nothing that only looks like one."""
    sentence = marked.replace("[", "").replace("]", "")
    found = when.find(sentence, MONDAY)
    shown = sentence
    for (start, end), period in reversed(found):
        assert period.text == sentence[start:end]
        shown = f"{shown[:start]}[{shown[start:end]}]{shown[end:]}"
    assert shown == marked


@pytest.mark.parametrize(
    ("phrase", "start"),
    [
        ("on Monday", "2026-11-23"),
        ("Friday", "2026-11-27"),
        ("in March", "2027-03-01"),
        ("November 3rd", "2027-11-03"),
        ("next Friday", "2026-12-04"),
        ("tomorrow at 3pm", "2026-11-24T15:00"),
        ("in two weeks", "2026-12-07"),
        ("at the weekend", "2026-11-28"),
        ("the next three days", "2026-11-23T15:30"),
        ("until Friday", "2026-11-23T15:30"),
        ("later today", "2026-11-23T15:30"),
    ],
)
def test_when_the_future_is_meant(phrase: str, start: str) -> None:
    """With `past=False` what comes round is the one that comes."""
    assert when.parse(phrase, MONDAY, past=False).start == at(start, MONDAY)


@pytest.mark.parametrize(
    "phrase",
    [
        "",
        "soup",
        "the article",
        "30 February",
        "2026-13-45",
        "25:99",
        "last",
        "of",
        "3",
        "99999 years ago",
        "9999 years ago",
        "x" * 5000,
    ],
)
def test_when_it_is_not_understood_it_says_so(phrase: str) -> None:
    """ValueError with examples of what is understood."""
    with pytest.raises(ValueError, match="last week"):
        when.parse(phrase, MONDAY)


def test_when_now_has_no_zone() -> None:
    """A naive now is refused: it could be anywhere."""
    with pytest.raises(ValueError, match="aware"):
        when.parse("today", MONDAY.replace(tzinfo=None))


def test_when_last_week_is_loosely_two_weeks() -> None:
    """People say it for ten days ago, too; never for what is to come."""
    assert when.parse("last week", MONDAY).loose == (at("2026-11-09", MONDAY), MONDAY)


def test_when_a_repeated_hour_counts_once() -> None:
    """In the hour that clocks show twice, a period holds a moment by the time that passes, not by the clock's face."""
    now = datetime(2026, 10, 25, 12, 0, tzinfo=ZoneInfo("Europe/Berlin"))
    first, second = (datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1))  # both show 2:30
    period = when.parse("past 10 hours", now)
    assert second in period
    assert first not in period


@given(
    phrase=st.sampled_from([row[0] for row in rows(PHRASES)]),
    zone=st.sampled_from(
        ["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "America/Santiago", "Africa/Casablanca", "UTC"]
    ),
    now=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),
)
def test_when_any_now_gives_a_sound_period_or_none(phrase: str, zone: str, now: datetime) -> None:
    """At any moment anywhere: aware, in the user's zone, not empty, inside its loose one; or plainly no such period."""
    moment = now.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC).astimezone(ZoneInfo(zone))
    try:
        period = when.parse(phrase, moment)
    except ValueError:
        assert "so far" in phrase or "this" in phrase or "earlier" in phrase or "today" in phrase or "year" in phrase
        return
    ends = [moment.timestamp() for moment in (period.loose[0], period.start, period.end, period.loose[1])]
    assert ends == sorted(ends)
    assert ends[1] < ends[2]
    assert period.start.tzinfo is moment.tzinfo


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from("last next week two or 3 - : pm at of the monday may 2026 since to".split()), max_size=12
    ).map(" ".join)
)
def test_when_nothing_said_breaks_it(sentence: str) -> None:
    """Any text gives phrases inside it, in order, without overlap; and quickly, whatever is piled up."""
    end = 0
    for (start, stop), _ in when.find(sentence, MONDAY):
        assert end <= start < stop <= len(sentence)
        end = stop
