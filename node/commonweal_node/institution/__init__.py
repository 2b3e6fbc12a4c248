"""What an institution decides and signs: joining, rounds, adoption, motions, departure.

It never imports training: what trains is handed in.
"""
