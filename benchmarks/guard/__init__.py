"""What attackers find and pay behind the query guard and less exact answers, and what honest traffic comes to."""
